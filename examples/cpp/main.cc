// Greedy decoding from token ids: deltallm_run --model m.ort --ops libdeltallm_ops.so --tokens 0,17,4 --new 64
#include <sys/resource.h>

#include <chrono>
#include <map>
#include <sstream>

#include "decoder.h"

static int64_t Number(const std::string& text, const std::string& option) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || text.size() > 9) throw Refusal(option + " has '" + text + "': give whole numbers below 1000000000.");
  return std::atoll(text.c_str());
}

static double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static int Run(int argc, char** argv) {
  std::map<std::string, std::string> given{{"--model", ""},     {"--ops", ""},   {"--ort", "libonnxruntime.so.1"},
                                           {"--tokens", ""},    {"--new", "32"}, {"--copy-caches", "0"},
                                           {"--capacity", "0"}, {"--eos", ""},   {"--threads", "0"},
                                           {"--chunk", "0"},    {"--mmap", "1"}};
  for (int i = 1; i < argc; i += 2) {
    const auto option = given.find(argv[i]);
    if (option == given.end() || i + 1 == argc) throw Refusal(argv[i] + std::string(": read examples/cpp/README.md."));
    option->second = argv[i + 1];
  }
  const auto number = [&](const char* option) { return Number(given[option], option); };
  std::vector<int64_t> prompt;
  std::istringstream tokens(given["--tokens"] + ",");
  for (std::string id; std::getline(tokens, id, ',');) prompt.push_back(Number(id, "--tokens"));
  const int64_t length = static_cast<int64_t>(prompt.size()), wanted = std::max<int64_t>(number("--new"), 1);
  const int64_t chunk = number("--chunk") == 0 ? length : number("--chunk");
  const int64_t end_id = given["--eos"].empty() ? -1 : number("--eos");
  // The last new token is never run, so it needs no room.
  const int64_t capacity = number("--capacity") == 0 ? length + wanted - 1 : number("--capacity");
  const std::string version = LoadRuntime(given["--ort"]);
  Decoder decoder({given["--model"], given["--ops"], static_cast<int>(number("--threads")), capacity,
                   number("--copy-caches") != 0, number("--mmap") != 0});
  decoder.CheckRoom(length + wanted - 1);
  const double begin = Seconds();
  int64_t token = 0, made = 0;
  for (int64_t at = 0; at < length; at += chunk) {
    token = decoder.Step({prompt.begin() + at, prompt.begin() + std::min(at + chunk, length)});
  }
  const double read = Seconds();
  for (;; token = decoder.Step({token})) {
    std::printf("%lld ", static_cast<long long>(token));
    std::fflush(stdout);
    if (++made == wanted || token == end_id) break;
  }
  const double decoding = std::max(Seconds() - read, 1e-9);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(stderr,
               "ONNX Runtime %s; prefill %zu tokens, %.1f tokens/s; decode %lld tokens, %.1f tokens/s; "
               "caches %zu bytes; peak RSS %ld KiB\n",
               version.c_str(), prompt.size(), prompt.size() / (read - begin), static_cast<long long>(made),
               (made - 1) / decoding, decoder.cache_bytes(), usage.ru_maxrss);
  std::printf("\n");
  return 0;
}

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::string sentence = error.what();  // ONNX Runtime's may have several lines
    std::replace(sentence.begin(), sentence.end(), '\n', ' ');
    std::fprintf(stderr, "error: %s\n", sentence.c_str());
    return 2;
  }
}
