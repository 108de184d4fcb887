// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OrtSession.java at 131734fc9e2615b1ddf1560e4b9b342481805cfb: what docs/deploy-android.md uses, without bodies.
// run with pinned outputs (pull request 16835) and Result are those of the classes in onnxruntime-android.
package ai.onnxruntime;

import java.util.Map;
import java.util.Optional;
import java.util.Set;

public class OrtSession implements AutoCloseable {
  public native Set<String> getInputNames();
  public native Map<String, NodeInfo> getInputInfo() throws OrtException;
  public native OnnxModelMetadata getMetadata() throws OrtException;
  public native Result run(Map<String, ? extends OnnxTensorLike> inputs,
      Set<String> requestedOutputs, Map<String, ? extends OnnxValue> pinnedOutputs, RunOptions runOptions) throws OrtException;
  public native void close() throws OrtException;
  public static class RunOptions {}
  public static class SessionOptions implements AutoCloseable {
    public SessionOptions() {}
    public native void setIntraOpNumThreads(int numThreads) throws OrtException;
    public native void setMemoryPatternOptimization(boolean memoryPatternOptimization) throws OrtException;
    public native void setCPUArenaAllocator(boolean useArena) throws OrtException;
    public native void registerCustomOpLibrary(String path) throws OrtException;
    public native void addConfigEntry(String configKey, String configValue) throws OrtException;
    public native void close();
  }
  public static class Result implements AutoCloseable {
    public native Optional<OnnxValue> get(String key);
    public native void close();
  }
}
