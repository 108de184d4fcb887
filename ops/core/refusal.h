// How an untrusted value is refused: one sentence with what was found, where, and what is expected.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace deltallm {

/// Its text reaches the user of the session as it is.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A part of a sentence as text. By hand, because streams would bring the locales of the standard library into ours and
/// triple its size.
template <typename Part>
std::string AsText(const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", static_cast<double>(part));
    return text;
  } else if constexpr (std::is_integral_v<Part> || std::is_enum_v<Part>) {
    static_assert(!std::is_same_v<Part, char> && !std::is_same_v<Part, bool>, "give a text");
    return std::to_string(static_cast<int64_t>(part));
  } else {
    return std::string(std::string_view(part));
  }
}

/// A mark as people write it: 0x with as few digits as it has.
inline std::string AsHex(uint32_t mark) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", static_cast<unsigned>(mark));
  return text;
}

/// Throws a Refusal whose sentence is the parts written one after the other.
template <typename... Parts>
[[noreturn]] void Refuse(const Parts&... parts) {
  std::string sentence;
  ((sentence += AsText(parts)), ...);
  throw Refusal(sentence);
}

}  // namespace deltallm
