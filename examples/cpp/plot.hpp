// A line plot as an SVG file: axes with ticks, grid, legend and title.
//
// Series may lie on top of each other (two optimizers that train alike do), so each has its own
// dashes as well as its own colour, and those drawn later are thinner than the first.
// Where to read next: gpt.cpp, which plots its training losses with it.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace plot {

struct series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y), such as (step, loss)
};

inline std::string escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return out;
}

inline bool finite(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

// One axis: the range [low, high] it shows, the pixels of its ends, and the distance of its ticks.
struct axis {
  double first_pixel, last_pixel;
  double low = std::numeric_limits<double>::infinity(), high = -low, step = 1;

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }

  // About `ticks` ticks, 1, 2 or 5 times a power of ten apart.
  void choose_step(int ticks) {
    if (low == high) {
      low -= 0.5;
      high += 0.5;
    }
    const double raw = (high - low) / ticks, power = std::pow(10, std::floor(std::log10(raw)));
    step = power * (raw < 1.5 * power ? 1 : raw < 3.5 * power ? 2 : raw < 7.5 * power ? 5 : 10);
  }

  double pixel(double value) const {
    return first_pixel + (value - low) / (high - low) * (last_pixel - first_pixel);
  }

  template <class F>
  void for_each_tick(F draw) const {
    for (double i = std::ceil(low / step - 1e-9); i <= high / step + 1e-9; ++i) {
      draw(pixel(i * step), i * step);
    }
  }
};

// Points that are not finite leave a gap in their line.
inline void write_svg(const std::string& path, const std::string& title, const std::string& x_label,
                      const std::string& y_label, const std::vector<series>& all) {
  constexpr const char* colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"};
  constexpr const char* dashes[] = {"none", "7 4", "2 3", "10 3 2 3", "4 2"};
  constexpr double left = 64, right = 696, top = 52, bottom = 364;
  axis x{left, right}, y{bottom, top};
  std::size_t longest_name = 0;
  for (const series& s : all) {
    longest_name = std::max(longest_name, s.name.size());
    for (const auto& point : s.points) {
      if (finite(point)) {
        x.include(point.first);
        y.include(point.second);
      }
    }
  }
  if (x.low > x.high) {
    throw std::invalid_argument("plot: no points for " + path);
  }
  x.choose_step(8);
  y.choose_step(6);
  y.low = y.step * std::floor(y.low / y.step);  // the y axis ends on ticks
  y.high = y.step * std::ceil(y.high / y.step);

  FILE* svg = std::fopen(path.c_str(), "wb");
  if (svg == nullptr) {
    throw std::runtime_error("plot: cannot write " + path);
  }
  std::fprintf(svg,
               "<svg xmlns='http://www.w3.org/2000/svg' width='720' height='420' "
               "viewBox='0 0 720 420' font-family='Helvetica, Arial, sans-serif' font-size='12' "
               "fill='#444'>\n<rect width='720' height='420' fill='#fff'/>\n"
               "<text x='64' y='30' font-size='16' font-weight='bold' fill='#111'>%s</text>\n"
               "<text x='380' y='406' text-anchor='middle' font-size='13'>%s</text>\n"
               "<text transform='translate(20 208) rotate(-90)' text-anchor='middle' "
               "font-size='13'>%s</text>\n",
               escape(title).c_str(), escape(x_label).c_str(), escape(y_label).c_str());
  y.for_each_tick([&](double at, double value) {
    std::fprintf(svg, "<path d='M64 %.1fH696' stroke='#e4e4e4'/>", at);
    std::fprintf(svg, "<text x='56' y='%.1f' text-anchor='end'>%g</text>\n", at + 4, value);
  });
  x.for_each_tick([&](double at, double value) {
    std::fprintf(svg, "<path d='M%.1f 364v5' stroke='#444'/>", at);
    std::fprintf(svg, "<text x='%.1f' y='384' text-anchor='middle'>%g</text>\n", at, value);
  });
  std::fprintf(svg, "<path d='M64 364H696' stroke='#444'/>\n");

  // The legend goes to the top right, which a falling loss leaves free.
  const double legend = right - 44 - 6.5 * static_cast<double>(longest_name);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double row = top + 18 + 20 * static_cast<double>(i);
    std::fprintf(svg,
                 "<g fill='none' stroke='%s' stroke-dasharray='%s' stroke-width='%g' "
                 "stroke-linejoin='round'>\n<path d='M%.1f %.1fh28'/>\n<path d='",
                 colours[i % 5], dashes[i % 5], i == 0 ? 2.4 : 1.6, legend, row);
    char command = 'M';
    for (const auto& point : all[i].points) {
      if (finite(point)) {
        std::fprintf(svg, "%c%.1f %.1f", command, x.pixel(point.first), y.pixel(point.second));
      }
      command = finite(point) ? 'L' : 'M';
    }
    std::fprintf(svg, "'/>\n</g>\n<text x='%.1f' y='%.1f'>%s</text>\n", legend + 36, row + 4,
                 escape(all[i].name).c_str());
  }
  std::fprintf(svg, "</svg>\n");
  const bool written = std::ferror(svg) == 0;
  if (std::fclose(svg) != 0 || !written) {
    throw std::runtime_error("plot: cannot write " + path);
  }
}

}  // namespace plot
