// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/TensorInfo.java at 97b96b807ddb223f9b6caa48ca83ed258de8b6c1: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public class TensorInfo implements ValueInfo {
  public final OnnxJavaType type = null;
  public native long[] getShape();
}
