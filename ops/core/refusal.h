// How an untrusted value is refused: one sentence with what was found, where, and what is expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace deltallm {

/// Its text reaches the user of the session as it is.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws a Refusal whose sentence is the parts written one after the other.
template <typename... Parts>
[[noreturn]] void Refuse(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Refusal(sentence.str());
}

}  // namespace deltallm
