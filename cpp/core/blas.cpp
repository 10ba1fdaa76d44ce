#include "core/blas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <stdexcept>

#include "core/blas_chunks.h"
#include "core/require.h"

namespace blasformer::blas {

namespace {

// The values of CBLAS_ORDER and CBLAS_TRANSPOSE.
constexpr int kRowMajor = 101;
constexpr int kNoTranspose = 111;
constexpr int kTranspose = 112;

template <class T>
using CblasGemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, T alpha, const T* a, int lda,
                           const T* b, int ldb, T beta, T* c, int ldc);

// Sets an environment variable while it lives.
class TemporaryEnvironment {
 public:
  TemporaryEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) saved_ = old;
    ::setenv(name, value, 1);
  }
  ~TemporaryEnvironment() {
    if (saved_) {
      ::setenv(name_, saved_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  TemporaryEnvironment(const TemporaryEnvironment&) = delete;
  TemporaryEnvironment& operator=(const TemporaryEnvironment&) = delete;

 private:
  const char* name_;
  std::optional<std::string> saved_;
};

std::string directory_of_this_library() {
  Dl_info info;
  if (::dladdr(reinterpret_cast<const void*>(&directory_of_this_library), &info) == 0 || info.dli_fname == nullptr) return ".";
  const std::string path = info.dli_fname;
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// OpenBLAS, loaded at first use and not at import: it starts its threads and takes its memory when it is loaded.
class Library {
 public:
  Library() {
    // Work is divided by our own pool. OpenBLAS reads this variable once, while it is being loaded, and then starts no
    // thread; openblas_set_num_threads alone would leave one sleeping thread per core behind.
    const TemporaryEnvironment one_thread("OPENBLAS_NUM_THREADS", "1");
    open();
    find(sgemm, "cblas_sgemm");
    find(dgemm, "cblas_dgemm");
    find(get_config, "openblas_get_config");
    find(get_corename, "openblas_get_corename");
    void (*set_num_threads)(int) = nullptr;
    find(set_num_threads, "openblas_set_num_threads");
    set_num_threads(1);
  }

  CblasGemm<float> sgemm = nullptr;
  CblasGemm<double> dgemm = nullptr;
  char* (*get_config)() = nullptr;
  char* (*get_corename)() = nullptr;

 private:
  void open() {
    path_ = directory_of_this_library() + "/_lib/" + BLASFORMER_BLAS_LIBRARY;
    handle_ = ::dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
#ifdef BLASFORMER_BLAS_FALLBACK
    if (handle_ == nullptr) {
      path_ = BLASFORMER_BLAS_FALLBACK;
      handle_ = ::dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
    }
#endif
    if (handle_ == nullptr) fail<std::runtime_error>("OpenBLAS could not be loaded from ", path_, ": ", ::dlerror());
  }

  template <class Function>
  void find(Function& function, const char* name) {
    const std::string symbol = std::string(BLASFORMER_BLAS_PREFIX) + name;
    function = reinterpret_cast<Function>(::dlsym(handle_, symbol.c_str()));
    if (function == nullptr) fail<std::runtime_error>("OpenBLAS in ", path_, " has no function ", symbol);
  }

  std::string path_;
  void* handle_ = nullptr;
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

// c = beta * c; what c held is not read when beta is 0.
template <class T>
void scale(Index m, Index n, T beta, T* c, Index ldc) {
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) c[i * ldc + j] = beta == T(0) ? T(0) : beta * c[i * ldc + j];
  }
}

template <class T>
void gemm(CblasGemm<T> function, Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, T alpha,
          const T* a, Index lda, const T* b, Index ldb, T beta, T* c, Index ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale(m, n, beta, c, ldc);
  const int order_a = transpose_a == Transpose::yes ? kTranspose : kNoTranspose;
  const int order_b = transpose_b == Transpose::yes ? kTranspose : kNoTranspose;
  for_each_chunk(std::numeric_limits<int>::max(), transpose_a, transpose_b, m, n, k, a, lda, b, ldb, beta, c, ldc,
                 [&](Index rows, Index columns, Index depth, const T* a_part, Index lda_part, const T* b_part, Index ldb_part,
                     T beta_part, T* c_part, Index ldc_part) {
                   const auto narrow = [](Index x) { return static_cast<int>(x); };
                   function(kRowMajor, order_a, order_b, narrow(rows), narrow(columns), narrow(depth), alpha, a_part,
                            narrow(lda_part), b_part, narrow(ldb_part), beta_part, c_part, narrow(ldc_part));
                 });
}

}  // namespace

void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, float alpha, const float* a, Index lda,
          const float* b, Index ldb, float beta, float* c, Index ldc) {
  gemm(library().sgemm, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(Transpose transpose_a, Transpose transpose_b, Index m, Index n, Index k, double alpha, const double* a,
          Index lda, const double* b, Index ldb, double beta, double* c, Index ldc) {
  gemm(library().dgemm, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

std::string config() { return library().get_config(); }
std::string core_name() { return library().get_corename(); }

}  // namespace blasformer::blas
