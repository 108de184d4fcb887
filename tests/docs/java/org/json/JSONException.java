// From Android's reference, org.json.JSONException: what docs/deploy-android.md uses, without bodies.
package org.json;

public class JSONException extends Exception {}
