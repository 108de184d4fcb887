// From microsoft/onnxruntime-genai src/java/src/main/java/ai/onnxruntime/genai/GenAIException.java at fbebe68baa8ae2ef11f51cd221604e9abf3d88d9: what docs/deploy-android.md uses, without bodies.
package ai.onnxruntime.genai;

public class GenAIException extends Exception {}
