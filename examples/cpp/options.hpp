// Options of a command line, `--name value` each.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace options {

// What takes a value; throws std::logic_error at one that it does not know.
using setter = std::function<void(const std::string&)>;

// Sets a variable.
inline setter into(std::string& to) {
  return [&to](const std::string& value) { to = value; };
}
inline setter into(int& to) {
  return [&to](const std::string& value) { to = std::stoi(value); };
}
inline setter into(float& to) {
  return [&to](const std::string& value) { to = std::stof(value); };
}
inline setter into(bool& to) {
  return [&to](const std::string& value) { to = std::stoi(value) != 0; };
}
// Names between commas.
inline setter into(std::vector<std::string>& to) {
  return [&to](const std::string& value) {
    to.clear();
    for (std::size_t at = 0, end = 0; end != std::string::npos; at = end + 1) {
      end = value.find(',', at);
      to.push_back(value.substr(at, end - at));
    }
  };
}

// Reads the command line; `--help` prints `help` and ends the program. Throws std::invalid_argument.
inline void read(int argc, char** argv, const char* help,
                 const std::map<std::string, setter>& setters) {
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      std::fputs(help, stdout);
      std::exit(0);
    }
    const auto option = setters.find(name);
    if (option == setters.end() || i + 1 == argc) {
      throw std::invalid_argument(
          name + (option == setters.end() ? ": no such option; see --help" : " needs a value"));
    }
    try {
      option->second(argv[i + 1]);
    } catch (const std::logic_error&) {
      throw std::invalid_argument(name + " " + argv[i + 1] + ": no such value; see --help");
    }
  }
}

}  // namespace options
