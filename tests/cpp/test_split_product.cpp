#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/time.h>
#endif

#include "check.h"
#include "core/blas.h"
#include "core/cpu.h"
#include "kernels/split_product.h"

namespace blasformer {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class UseIsa {
 public:
  explicit UseIsa(const std::string& name) : before_(active_isa_name()) { use_isa(name); }
  ~UseIsa() { use_isa(before_); }
  UseIsa(const UseIsa&) = delete;
  UseIsa& operator=(const UseIsa&) = delete;

 private:
  std::string before_;
};

bool has_amx() { return detected_isas().back() == "amx"; }

std::vector<std::string> units() {
  std::vector<std::string> names{"amx_reference"};
  if (has_amx()) names.emplace_back("amx");
  return names;
}

using Values = std::vector<float>;
std::size_t size(Index a, Index b = 1) { return static_cast<std::size_t>(a * b); }

struct Problem {
  Index rows, columns, depth;
  Values left, right;  // (rows, depth), (depth, columns)
  float& l(Index row, Index k) { return left[size(row * depth + k)]; }
  float& r(Index k, Index column) { return right[size(k * columns + column)]; }
};

template <class Left, class Right>
Problem problem(Index rows, Index columns, Index depth, const Left& left, const Right& right) {
  Problem p{rows, columns, depth, Values(size(rows, depth)), Values(size(depth, columns))};
  for (Index i = 0; i < rows; ++i) {
    for (Index k = 0; k < depth; ++k) p.l(i, k) = static_cast<float>(left(i, k));
  }
  for (Index k = 0; k < depth; ++k) {
    for (Index j = 0; j < columns; ++j) p.r(k, j) = static_cast<float>(right(k, j));
  }
  return p;
}

Values transposed(const Values& x, Index rows, Index columns) {
  Values y(x.size());
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) y[size(j * rows + i)] = x[size(i * columns + j)];
  }
  return y;
}

struct Aligned {
  explicit Aligned(Index bytes) : memory(static_cast<std::size_t>(bytes) + 64) {}
  void* data() { return memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64; }
  std::vector<unsigned char> memory;
};

// As layers call it: blocks of the depth, each added to the sum of those before it.
Values split_product(const Problem& p, Precision precision, Index block = 512, bool left_turned = false,
                     bool right_turned = false) {
  const SplitProductKernels& kernels = *split_product_kernels(precision);
  const Values left = left_turned ? transposed(p.left, p.rows, p.depth) : p.left;
  const Values right = right_turned ? transposed(p.right, p.depth, p.columns) : p.right;
  const MatrixView<float> left_view{left.data(), left_turned ? 1 : p.depth, left_turned ? p.rows : 1};
  const MatrixView<float> right_view{right.data(), right_turned ? 1 : p.columns, right_turned ? p.depth : 1};
  const Index bytes = kernels.packed_bytes(std::min(block, p.depth));
  Aligned strips(ceil_div(p.rows, kernels.lines) * bytes), panels(ceil_div(p.columns, kernels.lines) * bytes);
  Values c(size(p.rows, p.columns), kNaN);
  for (Index k = 0; k < p.depth; k += block) {
    const Index deep = std::min(block, p.depth - k);
    kernels.pack_left(left_view.from(0, k), p.rows, deep, strips.data());
    kernels.pack_right(right_view.from(k, 0), deep, p.columns, panels.data());
    CHECK(kernels.multiply(strips.data(), p.rows, deep, panels.data(), kernels.packed_bytes(deep), p.columns,
                           k == 0 ? nullptr : c.data(), p.columns, c.data(), p.columns));
  }
  return c;
}

Values plain_product(const Problem& p, Index block = 512) {
  const ProductKernels<float>& kernels = product_kernels<float>();
  Values strips(size(p.rows, p.depth)), panels(size(round_up(p.columns, kernels.panel), p.depth));
  Values c(size(p.rows, p.columns));
  for (Index k = 0; k < p.depth; k += block) {
    const Index deep = std::min(block, p.depth - k);
    kernels.pack_left({p.left.data() + k, p.depth, 1}, p.rows, deep, strips.data());
    kernels.pack_right({p.right.data() + k * p.columns, p.columns, 1}, deep, p.columns, panels.data());
    kernels.multiply(strips.data(), p.rows, deep, {panels.data(), deep * kernels.panel, kernels.panel},
                     p.columns, k == 0 ? nullptr : c.data(), p.columns, c.data(), p.columns);
  }
  return c;
}

Values blas_product(const Problem& p) {
  Values c(size(p.rows, p.columns));
  blas::gemm(blas::Transpose::no, blas::Transpose::no, p.rows, p.columns, p.depth, 1.0f, p.left.data(),
             p.depth, p.right.data(), p.columns, 0.0f, c.data(), p.columns);
  return c;
}

std::vector<double> exact_product(const Problem& p) {
  std::vector<double> c(size(p.rows, p.columns));
  for (Index i = 0; i < p.rows; ++i) {
    for (Index k = 0; k < p.depth; ++k) {
      const double x = p.left[size(i * p.depth + k)];
      for (Index j = 0; j < p.columns; ++j)
        c[size(i * p.columns + j)] += x * static_cast<double>(p.right[size(k * p.columns + j)]);
    }
  }
  return c;
}

struct Error {
  double rms = 0, largest = 0;
};

// Relative to the sum of the magnitudes of the terms, element by element.
Error error(const Values& c, const std::vector<double>& exact, const std::vector<double>& magnitudes) {
  Error e;
  double squares = 0;
  for (std::size_t i = 0; i < c.size(); ++i) {
    const double off = std::fabs(static_cast<double>(c[i]) - exact[i]) / magnitudes[i];
    squares += off * off;
    e.largest = std::max(e.largest, off);
  }
  e.rms = std::sqrt(squares / static_cast<double>(c.size()));
  return e;
}

std::vector<double> sums_of_magnitudes(Problem p) {
  for (Values* values : {&p.left, &p.right}) {
    for (float& x : *values) x = std::fabs(x);
  }
  return exact_product(p);
}

bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool same_value(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

std::mt19937 generator(20);
double normal() { return std::normal_distribution<double>()(generator); }
double uniform(double from, double to) { return std::uniform_real_distribution<double>(from, to)(generator); }
float any_digits() {  // all 24 digits, of magnitude 1
  return static_cast<float>(static_cast<std::int32_t>(generator() | 1u)) * 0x1p-31f;
}

const auto kNormal = [](Index, Index) { return normal(); };

}  // namespace

TEST(split_products_of_small_integers_are_exact_for_every_size_and_layout) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    for (Precision precision : {Precision::highest, Precision::high, Precision::medium}) {
      for (Index rows : {1, 2, 15, 16, 17, 33, 65}) {
        for (Index columns : {1, 3, 16, 31, 32, 33, 70}) {
          const Index depth = 1 + static_cast<Index>(generator() % 97);
          const auto integer = [](Index, Index) { return std::floor(uniform(-128, 128)); };
          const Problem p = problem(rows, columns, depth, integer, integer);
          const Values expected = plain_product(p);
          for (int turned = 0; turned < 4; ++turned)
            CHECK(same_bits(split_product(p, precision, 64, turned & 1, turned & 2), expected));
        }
      }
    }
  }
}

TEST(three_parts_hold_every_digit_of_a_float) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    constexpr Index n = 64;
    const auto identity = [](Index i, Index j) { return i == j ? 1.0 : 0.0; };
    for (int exponent : {-95, -63, -10, 0, 1, 90, 125}) {
      const auto any = [&](Index, Index) { return std::ldexp(any_digits(), exponent); };
      const Problem p = problem(n, 70, n, identity, any), q = problem(70, n, n, any, identity);
      CHECK(same_bits(split_product(p, Precision::highest), p.right));
      CHECK(same_bits(split_product(q, Precision::highest), q.left));
    }
    // Those at the edges of rounding: all digits set, halfway between two parts, and one beside it.
    const std::uint32_t edges[] = {0x3fffffff, 0x3f808000, 0x3f808001, 0x3f807fff, 0x3f818000, 0x3f800080,
                                   0x3f8080ff, 0x3f7fffff, 0x3f80807f, 0x3f808080, 0x3f808081, 0x7f7f7fff};
    const auto edge = [&](Index k, Index j) {
      float x;
      std::memcpy(&x, &edges[static_cast<std::size_t>(k + j) % std::size(edges)], sizeof x);
      return (k + j) % 2 == 0 ? x : -x;
    };
    const Problem p = problem(n, 70, n, identity, edge);
    CHECK(same_bits(split_product(p, Precision::highest), p.right));
  }
}

TEST(tiles_compute_as_the_instruction_is_defined) {
  const auto flushed = [](float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; };
  for (double spread : {0.0, 20.0, 60.0}) {
    const auto bfloat16 = [&](Index, Index) {
      return std::ldexp(static_cast<double>(generator() % 256) - 128,
                        static_cast<int>(uniform(-spread, spread)));
    };
    const Problem p = problem(17, 33, 64, bfloat16, bfloat16);
    Values expected;
    for (Index i = 0; i < p.rows; ++i) {
      for (Index j = 0; j < p.columns; ++j) {
        float c = 0;
        for (Index step = 0; step < p.depth; step += 32) {
          float sum[2] = {0, 0};
          for (Index k = 0; k < 32; ++k) {
            float& s = sum[k / 16];
            s = flushed(
                std::fma(p.left[size(i * p.depth + step + k)], p.right[size((step + k) * p.columns + j)], s));
          }
          c = flushed(c + flushed(sum[0] + sum[1]));
        }
        expected.push_back(c);
      }
    }
    for (const std::string& unit : units()) {
      const UseIsa use(unit);
      CHECK(same_bits(split_product(p, Precision::medium), expected));
      CHECK(same_bits(split_product(p, Precision::highest), expected));  // the other parts are zero
    }
  }
}

TEST(amx_gives_the_bits_of_its_reference) {
  if (!has_amx()) throw tests::Skipped{"no AMX"};
  const auto wild = [](Index, Index) {
    return std::ldexp(any_digits(), static_cast<int>(uniform(-125, 125)));
  };
  const auto small = [](Index, Index) {
    return std::ldexp(any_digits(), -static_cast<int>(uniform(30, 110)));
  };
  const auto bfloat16 = [](Index, Index) { return std::floor(uniform(-128, 128)); };
  const auto hard = [](Index, Index) {
    const auto chance = generator() % 200;
    return chance == 0 ? kInf : chance == 1 ? kNaN : chance < 4 ? 1e-40f : static_cast<float>(normal());
  };
  const auto compare = [](const Problem& p) {
    for (Precision precision : {Precision::highest, Precision::high, Precision::medium}) {
      const UseIsa amx("amx");
      const Values c = split_product(p, precision, 128);
      const UseIsa reference("amx_reference");
      CHECK(same_bits(c, split_product(p, precision, 128)));
    }
  };
  for (Index rows : {1, 17, 33}) {
    for (Index columns : {16, 65}) {
      for (Index depth : {1, 33, 200}) {
        compare(problem(rows, columns, depth, kNormal, kNormal));
        compare(problem(rows, columns, depth, bfloat16, kNormal));
        compare(problem(rows, columns, depth, kNormal, bfloat16));
        compare(problem(rows, columns, depth, wild, wild));
        compare(problem(rows, columns, depth, small, small));
        compare(problem(rows, columns, depth, hard, kNormal));
        compare(problem(rows, columns, depth, wild, hard));
      }
    }
  }
}

TEST(highest_precision_is_more_exact_than_openblas_in_float32) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    const auto compare = [](const Problem& p, bool dense = true) {
      const std::vector<double> exact = exact_product(p), magnitudes = sums_of_magnitudes(p);
      const Error ours = error(split_product(p, Precision::highest), exact, magnitudes);
      const Error theirs = error(blas_product(p), exact, magnitudes);
      CHECK(ours.rms <= theirs.rms);
      if (dense) CHECK(ours.largest <= theirs.largest);  // of few terms it is decided by chance
    };
    const auto wide = [](Index, Index) {
      return std::ldexp(any_digits(), static_cast<int>(uniform(-20, 20)));
    };
    for (int repeat = 0; repeat < 150; ++repeat) {
      const Index depth = 33 + static_cast<Index>(generator() % 800);
      const Index rows = 32 + static_cast<Index>(generator() % 17);
      const Index columns = 32 + static_cast<Index>(generator() % 17);
      compare(problem(rows, columns, depth, kNormal, kNormal));
      compare(problem(rows, columns, depth, wide, wide), false);
      const double shift = std::ldexp(1, static_cast<int>(uniform(-3, 12)));
      const auto shifted = [&](Index, Index) { return normal() + shift; };
      compare(problem(rows, columns, depth, shifted, kNormal));
      compare(problem(rows, columns, depth, shifted, shifted));
      // Sums that cancel: every second term is the one before it, negative, but for a little.
      Problem p = problem(rows, columns, depth, kNormal, kNormal);
      for (Index k = 1; k < depth; k += 2) {
        for (Index i = 0; i < rows; ++i) p.l(i, k) = -p.l(i, k - 1) * (1 + 1e-4f * any_digits());
        for (Index j = 0; j < columns; ++j) p.r(k, j) = p.r(k - 1, j);
      }
      compare(p);
      // Few terms that count: sizes that differ from row to row and along the depth, and zeros.
      const auto graded = [](Index i, Index k) { return std::ldexp(normal(), static_cast<int>(i - k) % 40); };
      compare(problem(rows, columns, depth, graded, graded), false);
      const Index terms = 2 + static_cast<Index>(generator() % 8);
      const auto sparse = [&](Index i, Index k) {
        return k >= i % 20 && k < i % 20 + terms ? any_digits() : 0.0f;
      };
      compare(problem(rows, columns, depth, sparse, [](Index, Index) { return any_digits(); }), false);
    }
  }
}

TEST(a_sum_of_one_term_is_off_by_less_than_its_last_digit) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    const auto diagonal = [](Index i, Index k) { return i == k ? any_digits() : 0.0f; };
    const auto any = [](Index, Index) { return any_digits(); };
    const Problem p = problem(65, 300, 65, diagonal, any);
    const std::vector<double> exact = exact_product(p);
    CHECK(error(split_product(p, Precision::highest), exact, sums_of_magnitudes(p)).largest < 0x1p-23);
  }
}

TEST(two_parts_and_one_are_as_exact_as_they_promise) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    const Problem p = problem(65, 63, 700, kNormal, kNormal);
    const std::vector<double> exact = exact_product(p), scale(exact.size(), std::sqrt(700.0));
    CHECK(error(split_product(p, Precision::high), exact, scale).largest < 3e-5);
    const Error medium = error(split_product(p, Precision::medium), exact, scale);
    CHECK(medium.largest < 2e-2 && medium.rms > 1e-4);
  }
}

TEST(what_parts_cannot_represent_is_computed_by_the_plain_kernels_and_changes_nothing_else) {
  const float hard[] = {kInf,        -kInf,
                        kNaN,        std::numeric_limits<float>::max(),
                        0x1.fep127f, 0x1.ff8p127f,
                        0x1p-103f,   0x1.8p-126f,
                        0x1p-149f,   -0x1.234568p-120f};
  // The largest number that is split, unless it makes a sum overflow.
  const auto is_split = [](float x, float c, float plain) {
    return x == 0x1.fep127f && std::fabs(c - plain) <= 0x1p-22f * std::fabs(plain);
  };
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    for (Precision precision : {Precision::highest, Precision::high, Precision::medium}) {
      const Problem ordinary = problem(50, 45, 70, kNormal, kNormal);
      const Values before = split_product(ordinary, precision);
      for (float x : hard) {
        for (const bool on_left : {true, false}) {
          for (int repeat = 0; repeat < 4; ++repeat) {
            Problem p = ordinary;
            const Index line = static_cast<Index>(generator() % (on_left ? 50 : 45));
            const Index k = static_cast<Index>(generator() % 70);
            if (on_left) {
              p.l(line, k) = x;
            } else {
              p.r(k, line) = x;
            }
            // Joined from the parts, the other operand is what that precision takes it for.
            const bool exactly = precision == Precision::highest;
            const Values plain = plain_product(p),
                         c = split_product(p, precision, 512, repeat & 1, repeat & 2);
            for (Index i = 0; i < p.rows; ++i) {
              for (Index j = 0; j < p.columns; ++j) {
                const std::size_t at = size(i * p.columns + j);
                const bool concerned = (on_left ? i : j) == line;
                if (!concerned) CHECK(same_bits({c[at]}, {before[at]}));
                if (concerned && exactly)
                  CHECK(same_value(c[at], plain[at]) || is_split(x, c[at], plain[at]));
                if (concerned) CHECK(std::isnan(c[at]) == std::isnan(plain[at]));
              }
            }
          }
        }
      }
    }
  }
}

TEST(sums_that_overflow_between_parts_or_lose_denormal_products_are_those_of_the_plain_kernels) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    const auto compare = [&](const Problem& p) {
      const std::vector<double> exact = exact_product(p);
      const Values plain = plain_product(p), c = split_product(p, Precision::highest);
      for (std::size_t i = 0; i < c.size(); ++i) {
        if (!std::isfinite(plain[i])) {
          CHECK(same_value(c[i], plain[i]));
        } else {
          const double last_digit = std::max(std::fabs(exact[i]) * 0x1p-20, 0x1p-149);
          CHECK(std::fabs(static_cast<double>(c[i]) - exact[i]) <= last_digit);
        }
      }
    };
    // Of one sign, so that what is lost is lost of the result.
    for (int exponent = 40; exponent <= 66; exponent += 2) {
      const auto large = [&](Index, Index) { return std::ldexp(std::fabs(any_digits()) + 1, exponent); };
      const auto small = [&](Index, Index) { return std::ldexp(std::fabs(any_digits()) + 1, -exponent); };
      compare(problem(33, 34, 35, large, large));
      compare(problem(33, 34, 35, small, small));
    }
    const auto tail = [](Index, Index) {
      return std::ldexp(any_digits(), -static_cast<int>(generator() % 100));
    };
    const auto positive_tail = [&](Index i, Index k) { return std::fabs(tail(i, k)); };
    compare(problem(33, 34, 70, positive_tail, positive_tail));
  }
}

TEST(a_row_of_a_split_product_has_the_same_bits_whatever_other_rows_there_are) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    const auto wild = [](Index, Index) {
      return std::ldexp(any_digits(), static_cast<int>(uniform(-125, 125)));
    };
    for (int repeat = 0; repeat < 10; ++repeat) {
      const Problem tail = problem(
          1, 40, 64, [](Index, Index) { return std::ldexp(any_digits(), -50); },
          [](Index, Index) { return std::ldexp(any_digits(), -static_cast<int>(generator() % 60)); });
      const Values alone = split_product(tail, Precision::highest);
      Problem p = problem(37, 40, 64, wild, kNormal);
      p.right = tail.right;
      std::copy(tail.left.begin(), tail.left.end(), p.left.begin() + 20 * 64);
      const Values c = split_product(p, Precision::highest);
      CHECK(same_bits(alone, Values(c.begin() + 20 * 40, c.begin() + 21 * 40)));
    }
  }
}

TEST(dot_products_of_bfloat16_give_what_tiles_give_but_for_rounding) {
  const UseIsa use(detected_isas().back());
  if (active_tile_unit() != TileUnit::avx512_bf16) throw tests::Skipped{"no AVX512_BF16"};
  CHECK(split_product_kernels(Precision::highest) == nullptr &&
        split_product_kernels(Precision::high) == nullptr);
  for (Index rows : {1, 7, 8, 9, 31, 33, 64}) {
    for (int turned = 0; turned < 4; ++turned) {
      const Problem p = problem(rows, 45, 101, kNormal, kNormal);
      const Values dots = split_product(p, Precision::medium, 64, turned & 1, turned & 2);
      const UseIsa reference("amx_reference");
      const Values tiles = split_product(p, Precision::medium, 64);
      for (std::size_t i = 0; i < dots.size(); ++i) CHECK(std::fabs(dots[i] - tiles[i]) < 1e-4f);
    }
  }
}

namespace {

// Multiplies a problem again and again, packed once, and tells when the result is not the first one.
class Repeated {
 public:
  Repeated()
      : kernels_(*split_product_kernels(Precision::highest)),
        problem_(problem(64, 64, 256, kNormal, kNormal)),
        left_(2 * kernels_.packed_bytes(256)),
        right_(2 * kernels_.packed_bytes(256)) {
    kernels_.pack_left({problem_.left.data(), 256, 1}, 64, 256, left_.data());
    kernels_.pack_right({problem_.right.data(), 64, 1}, 256, 64, right_.data());
    multiply(expected_);
  }

  bool differs() {
    Values c;
    multiply(c);
    return !same_bits(c, expected_);
  }

 private:
  void multiply(Values& c) {
    c.assign(64 * 64, kNaN);
    CHECK(kernels_.multiply(left_.data(), 64, 256, right_.data(), kernels_.packed_bytes(256), 64, nullptr, 0,
                            c.data(), 64));
  }

  const SplitProductKernels& kernels_;
  Problem problem_;
  Aligned left_, right_;
  Values expected_;
};

}  // namespace

TEST(threads_that_multiply_at_the_same_time_do_not_disturb_each_other) {
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    std::vector<Repeated> work(5);  // more than there may be CPUs: threads are switched within products
    std::vector<std::thread> threads;
    std::atomic<int> differing{0};
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
    for (Repeated& own : work) {
      threads.emplace_back([&differing, &own, end] {
        while (std::chrono::steady_clock::now() < end) differing += own.differs() ? 1 : 0;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(differing == 0);
  }
}

#if defined(__linux__)
TEST(signals_that_arrive_within_products_change_nothing) {
  static volatile std::sig_atomic_t signals;
  signals = 0;
  struct sigaction handler = {}, before = {};
  handler.sa_handler = [](int) { signals = signals + 1; };
  handler.sa_flags = SA_RESTART;
  CHECK(sigaction(SIGALRM, &handler, &before) == 0);
  int differing = 0;
  for (const std::string& unit : units()) {
    const UseIsa use(unit);
    Repeated work;
    const itimerval every_millisecond{{0, 1000}, {0, 1000}}, never{};
    setitimer(ITIMER_REAL, &every_millisecond, nullptr);
    const int until = signals + 20;
    while (signals < until) differing += work.differs() ? 1 : 0;
    setitimer(ITIMER_REAL, &never, nullptr);
  }
  sigaction(SIGALRM, &before, nullptr);
  CHECK(differing == 0);
}
#endif

#if defined(__x86_64__)
TEST(tiles_are_released_after_a_product) {
  if (!has_amx()) throw tests::Skipped{"no AMX"};
  const UseIsa use("amx");
  const auto states_in_use = [] {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return low;
  };
  constexpr unsigned kTileStates = 0x60000;  // their configuration and their contents
  const SplitProductKernels& kernels = *split_product_kernels(Precision::medium);
  kernels.configure();
  CHECK((states_in_use() & kTileStates) != 0);
  kernels.release();
  CHECK((states_in_use() & kTileStates) == 0);
  CHECK(!Repeated().differs());
  CHECK((states_in_use() & kTileStates) == 0);
}
#endif

TEST(ieee_precision_never_splits) {
  for (const std::string& isa : detected_isas()) {
    const UseIsa use(isa);
    CHECK(split_product_kernels(Precision::ieee) == nullptr);
  }
  const UseIsa use("amx_reference");
  CHECK(split_product_kernels(Precision::ieee) == nullptr);
}

}  // namespace blasformer
