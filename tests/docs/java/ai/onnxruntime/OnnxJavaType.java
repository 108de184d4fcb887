// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OnnxJavaType.java at 5fb67cc202aead12a5636488803bf10e7aa3caef: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public enum OnnxJavaType {
  UINT8;
  public final int size = 1;
}
