// From microsoft/onnxruntime-genai src/java/src/main/java/ai/onnxruntime/genai/GeneratorParams.java at 246a06484b41cbf4d430e55f3d6c571360829c44: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime.genai;

public final class GeneratorParams {
  public native void setSearchOption(String optionName, double value) throws GenAIException;
}
