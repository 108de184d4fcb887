// From microsoft/onnxruntime java/src/main/java/ai/onnxruntime/OrtException.java at d9664d918766fea1a1ba0bab5e9cd157250d6809: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime;

public class OrtException extends Exception {}
