// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OrtEnvironment.java at 08dc5afad4811071290d4de6050f01eb05ba76bc: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public class OrtEnvironment implements AutoCloseable {
  public native static OrtEnvironment getEnvironment();
  public native OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException;
  public native void close() throws OrtException;
}
