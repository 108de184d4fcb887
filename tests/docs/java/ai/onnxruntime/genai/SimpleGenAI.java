// From microsoft/onnxruntime-genai src/java/src/main/java/ai/onnxruntime/genai/SimpleGenAI.java at 8b4ba9339033cf5c70e1c9f07b80d1e13d1dbd06: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime.genai;

import java.util.function.Consumer;

public class SimpleGenAI {
  public SimpleGenAI(String modelPath) throws GenAIException {}
  public native GeneratorParams createGeneratorParams() throws GenAIException;
  public native String generate(GeneratorParams generatorParams, String prompt,
      Consumer<String> listener) throws GenAIException;
}
