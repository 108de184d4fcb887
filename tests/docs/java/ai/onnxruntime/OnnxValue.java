// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OnnxValue.java at d018c9785f8f0488dbac7c6c5d5effadc19b1a48: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public interface OnnxValue extends AutoCloseable {
  void close();
}
