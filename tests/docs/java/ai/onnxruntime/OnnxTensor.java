// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OnnxTensor.java at 50424921ed8de5f3c89cbddf866b6727d78be892: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;

public class OnnxTensor extends OnnxTensorLike {
  public native static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape,
      OnnxJavaType type) throws OrtException;
  public native static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data,
      long[] shape) throws OrtException;
  public native FloatBuffer getFloatBuffer();
}
