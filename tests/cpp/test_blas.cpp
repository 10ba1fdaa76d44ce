#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "check.h"
#include "core/blas.h"
#include "core/blas_chunks.h"

namespace blasformer::blas {

namespace {

template <class T>
struct Matrix {
  Matrix(Index rows, Index columns, Index row_stride) : rows(rows), columns(columns), row_stride(row_stride) {
    values.resize(static_cast<std::size_t>(rows * row_stride));
    std::uint32_t state = static_cast<std::uint32_t>(rows * 7919 + columns);
    for (T& x : values) x = static_cast<T>((state = state * 1664525u + 1013904223u) >> 24) / T(64) - T(2);
  }
  T& operator()(Index i, Index j) { return values[static_cast<std::size_t>(i * row_stride + j)]; }
  const T& operator()(Index i, Index j) const { return values[static_cast<std::size_t>(i * row_stride + j)]; }

  Index rows, columns, row_stride;
  std::vector<T> values;
};

template <class T>
T element(const Matrix<T>& matrix, Transpose transpose, Index i, Index j) {
  return transpose == Transpose::yes ? matrix(j, i) : matrix(i, j);
}

// c = alpha op(a) op(b) + beta c, by the definition. The elements are small multiples of 1/64, so that every
// sum is exact.
template <class T>
void reference_gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, T alpha,
                    const Matrix<T>& a, const Matrix<T>& b, T beta, Matrix<T>& c) {
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      T sum = 0;
      for (Index l = 0; l < k; ++l) sum += element(a, transpose_a, i, l) * element(b, transpose_b, l, j);
      c(i, j) = alpha * sum + (beta == T(0) ? T(0) : beta * c(i, j));
    }
  }
}

template <class T>
struct Product {
  Product(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k)
      : a(transpose_a == Transpose::yes ? Matrix<T>(k, m, m + 3) : Matrix<T>(m, k, k + 2)),
        b(transpose_b == Transpose::yes ? Matrix<T>(n, k, k + 1) : Matrix<T>(k, n, n + 4)),
        c(m, n, n + 5),
        expected(c) {}
  bool agrees() const { return c.values == expected.values; }  // what lies between the rows is untouched, too

  Matrix<T> a, b, c, expected;
};

const Transpose kBoth[] = {Transpose::no, Transpose::yes};

template <class T>
bool gemm_is_the_matrix_product() {
  for (Transpose ta : kBoth) {
    for (Transpose tb : kBoth) {
      for (Index m : {1, 7, 65}) {
        for (Index n : {1, 9, 33}) {
          for (Index k : {0, 1, 17, 130}) {
            for (T beta : {T(0), T(1), T(-2)}) {
              Product<T> p(ta, tb, m, n, k);
              reference_gemm(ta, tb, m, n, k, T(0.5), p.a, p.b, beta, p.expected);
              gemm(ta, tb, m, n, k, T(0.5), p.a.values.data(), p.a.row_stride, p.b.values.data(),
                   p.b.row_stride, beta, p.c.values.data(), p.c.row_stride);
              if (!p.agrees()) return false;
            }
          }
        }
      }
    }
  }
  return true;
}

}  // namespace

TEST(gemm_is_the_matrix_product_in_float32) { CHECK(gemm_is_the_matrix_product<float>()); }
TEST(gemm_is_the_matrix_product_in_float64) { CHECK(gemm_is_the_matrix_product<double>()); }

TEST(gemm_does_not_read_its_result_when_beta_is_zero) {
  for (Index k : {0, 3}) {
    const std::vector<float> ones(9, 1.0f);
    std::vector<float> c(9, std::nanf(""));
    gemm(Transpose::no, Transpose::no, 3, 3, k, 1.0f, ones.data(), 3, ones.data(), 3, 0.0f, c.data(), 3);
    CHECK(c == std::vector<float>(9, static_cast<float>(k)));
  }
}

TEST(gemm_of_no_rows_or_columns_touches_nothing) {
  float c = 5;
  gemm(Transpose::no, Transpose::no, 0, 4, 4, 1.0f, nullptr, 4, nullptr, 4, 0.0f, &c, 4);
  gemm(Transpose::no, Transpose::no, 4, 0, 4, 1.0f, nullptr, 4, nullptr, 0, 0.0f, &c, 0);
  CHECK(c == 5);
}

// As if the BLAS could count to 5 only: sizes beyond that, and rows further apart than that.
TEST(products_too_large_for_the_blas_are_cut) {
  constexpr Index kLimit = 5;
  for (Transpose ta : kBoth) {
    for (Transpose tb : kBoth) {
      for (Index m : {2, 11}) {
        for (Index n : {3, 12}) {
          for (Index k : {1, 4, 13}) {
            Product<double> p(ta, tb, m, n, k);
            reference_gemm(ta, tb, m, n, k, 1.0, p.a, p.b, 3.0, p.expected);
            const auto multiply = [&](Index rows, Index columns, Index depth, const double* a, Index lda,
                                      const double* b, Index ldb, double beta, double* c, Index ldc) {
              for (Index size : {rows, columns, depth, lda, ldb, ldc}) CHECK(size >= 1 && size <= kLimit);
              CHECK(lda >= (ta == Transpose::yes ? rows : depth));
              CHECK(ldb >= (tb == Transpose::yes ? depth : columns));
              CHECK(ldc >= columns);
              gemm(ta, tb, rows, columns, depth, 1.0, a, lda, b, ldb, beta, c, ldc);
            };
            for_each_chunk(kLimit, ta, tb, m, n, k, p.a.values.data(), p.a.row_stride, p.b.values.data(),
                           p.b.row_stride, 3.0, p.c.values.data(), p.c.row_stride, multiply);
            CHECK(p.agrees());
          }
        }
      }
    }
  }
}

// Only the addresses are 2^31 elements and more apart: one row of each matrix is touched.
TEST(gemm_reads_rows_further_apart_than_32_bits_can_say) {
  const Index far = Index{std::numeric_limits<int>::max()} + 10;
  const std::vector<float> a = {1, 2, 3}, b = {4, 5, 6};
  float c = 0;
  gemm(Transpose::no, Transpose::yes, 1, 1, 3, 1.0f, a.data(), far, b.data(), far, 0.0f, &c, far);
  CHECK(c == 32);
}

TEST(threads_may_multiply_at_once) {
  std::vector<std::thread> threads;
  std::vector<char> agrees(8, 0);
  for (std::size_t t = 0; t < agrees.size(); ++t) {
    threads.emplace_back([&agrees, t] {
      const Index n = 33 + 8 * static_cast<Index>(t);
      Product<float> p(Transpose::no, Transpose::yes, n, n, 300);
      reference_gemm(Transpose::no, Transpose::yes, n, n, Index{300}, 1.0f, p.a, p.b, 0.0f, p.expected);
      for (int repeat = 0; repeat < 20; ++repeat) {
        gemm(Transpose::no, Transpose::yes, n, n, 300, 1.0f, p.a.values.data(), p.a.row_stride,
             p.b.values.data(), p.b.row_stride, 0.0f, p.c.values.data(), p.c.row_stride);
      }
      agrees[t] = p.agrees();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (char ok : agrees) CHECK(ok);
}

}  // namespace blasformer::blas
