// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OnnxTensorLike.java at d018c9785f8f0488dbac7c6c5d5effadc19b1a48: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public abstract class OnnxTensorLike implements OnnxValue {
  public native void close();
}
