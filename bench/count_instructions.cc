// Counts instructions in the log of an emulator, qemu -d in_asm,exec,nochain,strace, which it reads from stdin.
//
// The log lists every block of instructions once, when it is translated ("IN:", then a line per instruction), and
// names it each time before it is executed ("Trace"). What a program executes between closing the files -1001 and
// -1002 is an interval. For each, stdout gets a line: instructions, blocks, then PAGE:INSTRUCTIONS for the pages of
// 64 KiB that they lie in, in hexadecimal.
#include <fcntl.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

struct Block {
  uint64_t begin = 0;
  uint64_t instructions = 0;
};

class Log {
 public:
  /// Takes a line of the log, without its end.
  void Read(const char* line) {
    if (std::strncmp(line, "Trace ", 6) == 0) {
      Executed(line);
    } else if (std::strncmp(line, "Stopped execution of TB chain before ", 37) == 0) {
      Count(blocks_[std::strtoull(line + 37, nullptr, 16)], -1);  // was named, and will be named again
    } else if (std::strncmp(line, "IN:", 3) == 0) {
      listing_ = true;
      listed_ = nullptr;
    } else if (line[0] == '\0') {
      listing_ = false;
    } else if (listing_ && std::strncmp(line, "0x", 2) == 0) {
      if (listed_ == nullptr) *(listed_ = &fresh_[std::strtoull(line, nullptr, 16)]) = 0;
      ++*listed_;
    } else if (std::strstr(line, " close(-1001) = ") != nullptr) {
      counting_ = true;
      instructions_ = executed_ = 0;
      pages_.clear();
    } else if (std::strstr(line, " close(-1002) = ") != nullptr && counting_) {
      Report();
    }
  }

 private:
  /// "Trace CPU: TRANSLATION [BASE/ADDRESS/FLAGS/FLAGS] SYMBOL"
  void Executed(const char* line) {
    const char* const translation = std::strchr(line, 'x');
    const char* const bracket = translation == nullptr ? nullptr : std::strchr(translation, '[');
    const char* const slash = bracket == nullptr ? nullptr : std::strchr(bracket, '/');
    if (slash == nullptr) Fail("cannot read", line);
    Block& block = blocks_[std::strtoull(translation + 1, nullptr, 16)];
    const uint64_t begin = std::strtoull(slash + 1, nullptr, 16);
    // Translated anew, perhaps where another block's translation lay.
    const auto listing = fresh_.empty() ? fresh_.end() : fresh_.find(begin);
    if (listing != fresh_.end()) {
      block = {begin, listing->second};
      fresh_.erase(listing);
    }
    if (block.instructions == 0 || block.begin != begin) Fail("no listing of the block", line);
    Count(block, 1);
  }

  void Count(const Block& block, int64_t times) {
    if (!counting_) return;
    executed_ += times;
    instructions_ += times * static_cast<int64_t>(block.instructions);
    pages_[block.begin >> 16] += times * static_cast<int64_t>(block.instructions);
  }

  void Report() {
    counting_ = false;
    std::printf("%" PRId64 " %" PRId64, instructions_, executed_);
    for (const auto& [page, instructions] : pages_) std::printf(" %" PRIx64 ":%" PRId64, page, instructions);
    std::printf("\n");
  }

  [[noreturn]] static void Fail(const char* what, const char* line) {
    std::fprintf(stderr, "%s: %s\n", what, line);
    std::exit(1);
  }

  std::unordered_map<uint64_t, Block> blocks_;    // by the place of the translation
  std::unordered_map<uint64_t, uint64_t> fresh_;  // by address: instructions of blocks not yet executed
  uint64_t* listed_ = nullptr;                    // of those the one that is being listed
  bool listing_ = false, counting_ = false;
  int64_t instructions_ = 0, executed_ = 0;
  std::map<uint64_t, int64_t> pages_;
};

}  // namespace

int main() {
  std::string pending;
  std::vector<char> piece(1 << 20);
  fcntl(STDIN_FILENO, F_SETPIPE_SZ, piece.size());
  Log log;
  for (ssize_t size; (size = read(STDIN_FILENO, piece.data(), piece.size())) > 0;) {
    pending.append(piece.data(), static_cast<size_t>(size));
    size_t begin = 0;
    for (size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1) {
      pending[end] = '\0';
      log.Read(&pending[begin]);
    }
    pending.erase(0, begin);
    // The emulator writes line by line: who waits for it is woken for each, which takes longer than the reading.
    if (static_cast<size_t>(size) < piece.size() / 2) usleep(5000);
  }
  return 0;
}
