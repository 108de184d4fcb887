// From Android's reference, org.json.JSONObject: what docs/deploy-android.md uses, without bodies.
package org.json;

public class JSONObject {
  public JSONObject(String json) throws JSONException {}
  public native long optLong(String name);
  public native String optString(String name);
}
