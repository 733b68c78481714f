// Text to train on: the bytes of a file or a folder, and batches drawn from them.
//
// Everything is a function of its arguments: the same files give the same bytes in the same order,
// and the same seed and step the same batch. So a run resumed at step n sees what the uninterrupted
// run saw, with nothing to save but n.
// Where to read next: gpt.hpp, the model that reads the batches.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "splitmix64.hpp"

namespace text {

namespace fs = std::filesystem;

struct corpus {
  std::vector<std::uint8_t> train, validation;
  std::size_t files = 0;
};

struct batch {
  std::vector<std::uint8_t> tokens, targets;  // batch x context each
};

// At most `limit` bytes of one file; none if it cannot be read.
inline std::string read_file(const fs::path& path, std::size_t limit) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(path, error);
  std::string bytes(error ? 0 : static_cast<std::size_t>(std::min<std::uintmax_t>(size, limit)),
                    '\0');
  std::ifstream in(path, std::ios::binary);
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<std::size_t>(in.gcount()));
  return bytes;
}

// A folder's Python sources, or all its files where it has none, sorted by path. Links, hidden
// names and packages installed among the sources are left out.
inline std::vector<fs::path> list_files(const fs::path& folder) {
  std::vector<fs::path> sources, all;
  fs::recursive_directory_iterator entry(folder, fs::directory_options::skip_permission_denied);
  for (; entry != fs::recursive_directory_iterator(); ++entry) {
    const std::string name = entry->path().filename().string();
    if (name[0] == '.' || name == "site-packages" || name == "dist-packages") {
      entry.disable_recursion_pending();
    } else if (!entry->is_symlink() && entry->is_regular_file()) {
      all.push_back(entry->path());
      if (entry->path().extension() == ".py") {
        sources.push_back(entry->path());
      }
    }
  }
  std::vector<fs::path>& files = sources.empty() ? all : sources;
  std::sort(files.begin(), files.end());
  return files;
}

// Reads at most `limit` bytes of text from a file or a folder. The last tenth is for validation.
inline corpus load(const std::string& path, std::size_t limit = std::size_t{8} << 20) {
  std::vector<fs::path> files{path};
  if (fs::is_directory(path)) {
    files = list_files(path);
    // Neighbours are alike (tests, tables), so in sorted order the last tenth would be unlike the
    // rest. A fixed shuffle makes both parts samples of the whole folder.
    splitmix64 random(files.size());
    for (std::size_t i = files.size(); i > 1; --i) {
      std::swap(files[i - 1], files[random.below(i)]);
    }
  }
  corpus c;
  for (const fs::path& file : files) {
    const std::string bytes = read_file(file, limit - c.train.size());
    if (bytes.empty() || bytes.substr(0, 4096).find('\0') != std::string::npos) {
      continue;  // empty, unreadable or not text
    }
    c.train.insert(c.train.end(), bytes.begin(), bytes.end());
    ++c.files;
    if (c.train.size() == limit) {
      break;
    }
  }
  if (c.train.empty()) {
    throw std::runtime_error("text: no text found in " + path);
  }
  const auto split = c.train.end() - static_cast<std::ptrdiff_t>(c.train.size() / 10);
  c.validation.assign(split, c.train.end());
  c.train.erase(split, c.train.end());
  return c;
}

// `size` windows of `context` bytes at random places; a target is the byte after its token.
inline batch draw(const std::vector<std::uint8_t>& bytes, int size, int context, std::uint64_t seed,
                  std::uint64_t step) {
  if (bytes.size() <= static_cast<std::size_t>(context)) {
    throw std::runtime_error("text: too little text: " + std::to_string(bytes.size()) +
                             " bytes for windows of " + std::to_string(context + 1));
  }
  splitmix64 random(splitmix64(seed).next() + step);
  batch b;
  for (int i = 0; i < size; ++i) {
    const auto first =
        bytes.begin() + static_cast<std::ptrdiff_t>(random.below(bytes.size() - context));
    b.tokens.insert(b.tokens.end(), first, first + context);
    b.targets.insert(b.targets.end(), first + 1, first + 1 + context);
  }
  return b;
}

// The folder of the Python standard library's sources: some tens of megabytes of text that many
// machines have.
inline std::string python_stdlib() {
  const char* command =
      "python3 -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))' 2>/dev/null";
  std::string path;
  if (FILE* pipe = popen(command, "r")) {
    for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n';) {
      path.push_back(static_cast<char>(c));
    }
    pclose(pipe);
  }
  if (path.empty() || !fs::is_directory(path)) {
    throw std::runtime_error(
        "text: python3 does not name its standard library; give a file or folder of text instead");
  }
  return path;
}

}  // namespace text
