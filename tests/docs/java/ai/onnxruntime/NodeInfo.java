// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/NodeInfo.java at ebafd7ac4b929b2f7ad08c60695197ff3bd40bc3: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public class NodeInfo {
  public native ValueInfo getInfo();
}
