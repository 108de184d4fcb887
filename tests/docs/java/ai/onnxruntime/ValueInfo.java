// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/ValueInfo.java at 4a46fc5f31ace214d2806a5f79f16bfb3a8933b3: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public interface ValueInfo {}
