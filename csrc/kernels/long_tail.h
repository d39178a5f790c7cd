// Class counts and index lists of long-tailed sets, on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace ltat {

enum class Profile { kExponential, kStep };

// Images per class, n_c = trunc(n_max * mu^e_c) with mu = 1 / ratio; e_c = c / (C - 1), or for the step
// profile 1 for the last floor(C / 2) classes and 0 before.
inline std::vector<int64_t> longtail_counts(int64_t n_max, int64_t num_classes, double ratio,
                                            Profile profile) {
  if (n_max < 1) throw std::invalid_argument("n_max must be at least 1, got " + std::to_string(n_max));
  if (num_classes < 1) {
    throw std::invalid_argument("num_classes must be at least 1, got " + std::to_string(num_classes));
  }
  if (!(ratio >= 1.0)) throw std::invalid_argument("ratio must be at least 1, got " + std::to_string(ratio));
  const double mu = 1.0 / ratio;
  std::vector<int64_t> counts(num_classes);
  for (int64_t c = 0; c < num_classes; ++c) {
    const double step = c < (num_classes + 1) / 2 ? 0.0 : 1.0;
    const double slope =
        num_classes == 1 ? 0.0 : static_cast<double>(c) / static_cast<double>(num_classes - 1);
    const double exponent = profile == Profile::kStep ? step : slope;
    counts[c] = static_cast<int64_t>(static_cast<double>(n_max) * std::pow(mu, exponent));
  }
  return counts;
}

// A counting sort: `order` [size] lists the positions class by class, within a class in their original order;
// those of class c are order[offsets[c]] .. order[offsets[c + 1] - 1].
inline void group_by_class(const int64_t* labels, int64_t size, int64_t num_classes, int64_t* order,
                           int64_t* offsets) {
  for (int64_t c = 0; c <= num_classes; ++c) offsets[c] = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (labels[i] < 0 || labels[i] >= num_classes) {
      throw std::invalid_argument("label " + std::to_string(labels[i]) + " at position " + std::to_string(i) +
                                  " is outside 0.." + std::to_string(num_classes - 1));
    }
    ++offsets[labels[i] + 1];
  }
  for (int64_t c = 0; c < num_classes; ++c) offsets[c + 1] += offsets[c];
  std::vector<int64_t> next(offsets, offsets + num_classes);
  for (int64_t i = 0; i < size; ++i) order[next[labels[i]]++] = i;
}

}  // namespace ltat
