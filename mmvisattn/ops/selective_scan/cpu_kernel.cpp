// Selective scan on the CPU, forward and backward; see the package docstring for the formulas.
//
// One SIMD vector holds LANES neighbouring channels, and the state of these channels is one vector per state entry, so
// that nothing is ever summed across lanes in the inner loops. A task is one batch element and a range of such
// channel tiles; it walks over the sequence in chunks and, inside a chunk, over its tiles.
//
// The functions at the end are called through ctypes. B, C, A and all states are contiguous and of the type of the
// state; u, delta and their like come in any type and with any strides.

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

// Denormal numbers cost some hundred cycles each; a decaying state passes through them.
class FlushDenormals {
#if defined(__x86_64__) || defined(_M_X64)
  unsigned saved_ = _mm_getcsr();

 public:
  FlushDenormals() { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  uint64_t saved_;

 public:
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t(1) << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#endif
};

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr float ROUND = 0x1.8p23f;
  static constexpr int EXPONENT_SHIFT = 23;
  static constexpr uint32_t BIAS = 127;
  // Minimax (2^f - 1) / f on [-1/2, 1/2]: 2^f has a relative error of 2.6e-9, and of less near f = 0.
  static constexpr float POLY[] = {0.693147214968f,    0.240226527829f,    0.0555031055101f,
                                   0.00961769297299f,  0.00134066439024f,  0.000155946781613f};
};

template <>
struct Simd<double> {
  typedef double vec __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint64_t bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr double ROUND = 0x1.8p52;
  static constexpr int EXPONENT_SHIFT = 52;
  static constexpr uint64_t BIAS = 1023;
  // Likewise, relative error 1.8e-17.
  static constexpr double POLY[] = {0.69314718055994569675,   0.24022650695910098007,   0.055504108664790394552,
                                    0.0096181291076070023796, 0.0013333558153439964747, 0.0001540353044157213033,
                                    0.000015252727385193868197, 1.3215442675329822143e-6, 1.0180647659234138888e-7,
                                    7.0725704128144235096e-9, 4.078071929588336665e-10};
};

template <typename T>
using Vec = typename Simd<T>::vec;

template <typename T>
constexpr int LANES = VECTOR_BYTES / sizeof(T);

// 2^x. Zero where the result would be denormal, infinite from 2^(BIAS + 1/2) on; NaN stays NaN.
template <typename T>
inline Vec<T> exp2(Vec<T> x) {
  using S = Simd<T>;
  using Bits = typename S::bits;
  constexpr T limit = T(S::BIAS);
  x = x < -limit ? Vec<T>{} - limit : x;
  x = x > limit + 1 ? Vec<T>{} + (limit + 1) : x;
  const Vec<T> shifted = x + S::ROUND;  // the rounded x now stands in the low bits
  const Vec<T> f = x - (shifted - S::ROUND);
  constexpr int degree = sizeof(S::POLY) / sizeof(T);
  Vec<T> p = Vec<T>{} + S::POLY[degree - 1];
  for (int i = degree - 2; i >= 0; --i) p = p * f + S::POLY[i];
  p = p * f + T(1);
  const Bits scale = ((Bits)shifted + S::BIAS) << S::EXPONENT_SHIFT;
  return p * (Vec<T>)scale;
}

}  // namespace

extern "C" {

// A tensor (B, D, L); `type` is 0 float, 1 double, 2 bfloat16, 3 half. Strides count elements.
struct Sequence {
  void* data;
  int64_t type, stride_b, stride_d, stride_t;
};

struct Sizes {
  int64_t batch, dim, length, state, chunk, groups;
};

}  // extern "C"

namespace {

template <typename T, typename E>
void load_as(Vec<T>* out, const Sequence& x, int64_t b, int64_t d, int lanes, int64_t start, int steps) {
  const E* base = static_cast<const E*>(x.data) + b * x.stride_b + d * x.stride_d + start * x.stride_t;
  T* values = reinterpret_cast<T*>(out);
  constexpr int width = LANES<T>;
  if (x.stride_d == 1 && lanes == width) {
    for (int t = 0; t < steps; ++t)
      for (int i = 0; i < width; ++i) values[t * width + i] = static_cast<T>(base[t * x.stride_t + i]);
    return;
  }
  if (lanes < width) std::fill(values, values + steps * width, T(0));
  for (int i = 0; i < lanes; ++i)
    for (int t = 0; t < steps; ++t) values[t * width + i] = static_cast<T>(base[i * x.stride_d + t * x.stride_t]);
}

template <typename T, typename E>
void store_as(const Vec<T>* in, const Sequence& x, int64_t b, int64_t d, int lanes, int64_t start, int steps) {
  E* base = static_cast<E*>(x.data) + b * x.stride_b + d * x.stride_d + start * x.stride_t;
  const T* values = reinterpret_cast<const T*>(in);
  constexpr int width = LANES<T>;
  for (int t = 0; t < steps; ++t)
    for (int i = 0; i < lanes; ++i)
      base[t * x.stride_t + i * x.stride_d] = static_cast<E>(values[t * width + i]);
}

// Copy steps of a channel tile from any layout and type into vectors, unused lanes zero, and back.
template <typename T, typename... Rest>
void load(Vec<T>* out, const Sequence& x, Rest... rest) {
  switch (x.type) {
    case 0: return load_as<T, float>(out, x, rest...);
    case 1: return load_as<T, double>(out, x, rest...);
    case 2: return load_as<T, c10::BFloat16>(out, x, rest...);
    default: return load_as<T, c10::Half>(out, x, rest...);
  }
}

template <typename T, typename... Rest>
void store(const Vec<T>* in, const Sequence& x, Rest... rest) {
  switch (x.type) {
    case 0: return store_as<T, float>(in, x, rest...);
    case 1: return store_as<T, double>(in, x, rest...);
    case 2: return store_as<T, c10::BFloat16>(in, x, rest...);
    default: return store_as<T, c10::Half>(in, x, rest...);
  }
}

// Rows of a contiguous (rows, dim) matrix at one channel tile, and back.
template <typename T>
void load_rows(Vec<T>* out, const T* matrix, int64_t rows, int64_t dim, int64_t d, int lanes) {
  for (int64_t n = 0; n < rows; ++n) {
    out[n] = Vec<T>{};
    std::memcpy(&out[n], matrix + n * dim + d, lanes * sizeof(T));
  }
}

template <typename T>
void store_rows(const Vec<T>* in, T* matrix, int64_t rows, int64_t dim, int64_t d, int lanes) {
  for (int64_t n = 0; n < rows; ++n) std::memcpy(matrix + n * dim + d, &in[n], lanes * sizeof(T));
}

template <typename T>
T sum_lanes(Vec<T> x) {
  T sum = 0;
  for (int i = 0; i < LANES<T>; ++i) sum += x[i];
  return sum;
}

// Calls body(b, group, first tile, last tile) for each task, on all threads.
template <typename T, typename F>
void for_each_task(const Sizes& s, const F& body) {
  const int64_t tiles = (s.dim + LANES<T> - 1) / LANES<T>;
  at::parallel_for(0, s.batch * s.groups, 1, [&](int64_t begin, int64_t end) {
    FlushDenormals flush;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % s.groups;
      body(task / s.groups, group, tiles * group / s.groups, tiles * (group + 1) / s.groups);
    }
  });
}

// N > 0 fixes the size of the state at compile time, which lets the compiler keep it in registers.
template <typename T, int N>
void forward(const Sequence& u, const Sequence& delta, const T* A, const T* B, const T* C, const Sequence& y,
             T* states, const Sizes& s) {
  const int64_t state = N > 0 ? N : s.state;
  for_each_task<T>(s, [&](int64_t b, int64_t, int64_t first, int64_t last) {
    std::vector<Vec<T>> h_all((last - first) * state), rows(state), dt(s.chunk), x(s.chunk), out(s.chunk);
    for (int64_t start = 0; start < s.length; start += s.chunk) {
      const int steps = std::min(s.chunk, s.length - start);
      const T* B_t = B + (b * s.length + start) * state;
      const T* C_t = C + (b * s.length + start) * state;
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t d = tile * LANES<T>;
        const int lanes = std::min<int64_t>(LANES<T>, s.dim - d);
        Vec<T>* h = &h_all[(tile - first) * state];
        const Vec<T>* a = rows.data();
        load_rows<T>(rows.data(), A, state, s.dim, d, lanes);
        load<T>(dt.data(), delta, b, d, lanes, start, steps);
        load<T>(x.data(), u, b, d, lanes, start, steps);
        if (states) store_rows<T>(h, states + (start / s.chunk * s.batch + b) * state * s.dim, state, s.dim, d, lanes);
        for (int t = 0; t < steps; ++t) {
          const Vec<T> dt_t = dt[t], x_t = dt_t * x[t];
          Vec<T> sum{};
          for (int64_t n = 0; n < state; ++n) {
            h[n] = exp2<T>(dt_t * a[n]) * h[n] + x_t * B_t[t * state + n];
            sum += C_t[t * state + n] * h[n];
          }
          out[t] = sum;
        }
        store<T>(out.data(), y, b, d, lanes, start, steps);
      }
    }
  });
}

template <typename T, int N>
void backward(const Sequence& grad_y, const Sequence& u, const Sequence& delta, const T* A, const T* B, const T* C,
              const T* states, const Sequence& grad_u, const Sequence& grad_delta, T* grad_A, T* grad_B, T* grad_C,
              const Sizes& s) {
  const int64_t state = N > 0 ? N : s.state;
  for_each_task<T>(s, [&](int64_t b, int64_t group, int64_t first, int64_t last) {
    const int64_t chunk = s.chunk, tiles = last - first;
    std::vector<Vec<T>> carry(tiles * state), sum_A(tiles * state);  // of each tile
    std::vector<Vec<T>> sum_B(chunk * state), sum_C(chunk * state);  // over the tiles of the task
    std::vector<Vec<T>> decay(chunk * state), h((chunk + 1) * state);
    std::vector<Vec<T>> rows(state), dt(chunk), u_tile(chunk), gy(chunk), out_u(chunk), out_delta(chunk);
    for (int64_t start = (s.length - 1) / chunk * chunk; start >= 0; start -= chunk) {
      const int steps = std::min(chunk, s.length - start);
      const T* B_t = B + (b * s.length + start) * state;
      const T* C_t = C + (b * s.length + start) * state;
      std::fill(sum_B.begin(), sum_B.end(), Vec<T>{});
      std::fill(sum_C.begin(), sum_C.end(), Vec<T>{});
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t d = tile * LANES<T>;
        const int lanes = std::min<int64_t>(LANES<T>, s.dim - d);
        const Vec<T>* a = rows.data();
        Vec<T>* q = &carry[(tile - first) * state];
        Vec<T>* grad_a = &sum_A[(tile - first) * state];
        load_rows<T>(rows.data(), A, state, s.dim, d, lanes);
        load<T>(dt.data(), delta, b, d, lanes, start, steps);
        load<T>(u_tile.data(), u, b, d, lanes, start, steps);
        load<T>(gy.data(), grad_y, b, d, lanes, start, steps);
        load_rows<T>(h.data(), states + (start / chunk * s.batch + b) * state * s.dim, state, s.dim, d, lanes);
        for (int t = 0; t < steps; ++t) {
          const Vec<T> dt_t = dt[t], x_t = dt_t * u_tile[t], gy_t = gy[t];
          for (int64_t n = 0, i = t * state; n < state; ++n, ++i) {
            const Vec<T> decay_t = exp2<T>(dt_t * a[n]);
            const Vec<T> h_t = decay_t * h[i] + x_t * B_t[i];
            decay[i] = decay_t;
            h[i + state] = h_t;
            sum_C[i] += gy_t * h_t;
          }
        }
        for (int t = steps - 1; t >= 0; --t) {
          const Vec<T> dt_t = dt[t], x_t = dt_t * u_tile[t], gy_t = gy[t];
          Vec<T> grad_x{}, grad_dt{};
          for (int64_t n = 0, i = t * state; n < state; ++n, ++i) {
            const Vec<T> g = q[n] + C_t[i] * gy_t;
            const Vec<T> decayed = decay[i] * g;
            const Vec<T> grad_exponent = decayed * h[i];
            q[n] = decayed;
            sum_B[i] += g * x_t;
            grad_x += g * B_t[i];
            grad_dt += grad_exponent * a[n];
            grad_a[n] += grad_exponent * dt_t;
          }
          out_u[t] = grad_x * dt_t;
          // A comes multiplied by log2(e)
          out_delta[t] = grad_x * u_tile[t] + grad_dt * T(0.6931471805599453094);
        }
        store<T>(out_u.data(), grad_u, b, d, lanes, start, steps);
        store<T>(out_delta.data(), grad_delta, b, d, lanes, start, steps);
      }
      T* grad_B_t = grad_B + ((b * s.groups + group) * s.length + start) * state;
      T* grad_C_t = grad_C + ((b * s.groups + group) * s.length + start) * state;
      for (int64_t i = 0; i < steps * state; ++i) {
        grad_B_t[i] = sum_lanes<T>(sum_B[i]);
        grad_C_t[i] = sum_lanes<T>(sum_C[i]);
      }
    }
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t d = tile * LANES<T>;
      const int lanes = std::min<int64_t>(LANES<T>, s.dim - d);
      store_rows<T>(&sum_A[(tile - first) * state], grad_A + b * state * s.dim, state, s.dim, d, lanes);
    }
  });
}

}  // namespace

// Shapes: A (N, D), times log2(e); B, C (batch, L, N); states (chunks, batch, N, D) or null; grad_A (batch, N, D);
// grad_B, grad_C (batch, groups, L, N), to be summed over the groups.
#define DEFINE_FUNCTIONS(T, SUFFIX)                                                                                  \
  extern "C" void selective_scan_forward_##SUFFIX(const Sequence* u, const Sequence* delta, const T* A, const T* B, \
                                                  const T* C, const Sequence* y, T* states, const Sizes* s) {       \
    auto run = s->state == 16 ? forward<T, 16> : forward<T, 0>;                                                      \
    run(*u, *delta, A, B, C, *y, states, *s);                                                                        \
  }                                                                                                                  \
  extern "C" void selective_scan_backward_##SUFFIX(                                                                  \
      const Sequence* grad_y, const Sequence* u, const Sequence* delta, const T* A, const T* B, const T* C,          \
      const T* states, const Sequence* grad_u, const Sequence* grad_delta, T* grad_A, T* grad_B, T* grad_C,          \
      const Sizes* s) {                                                                                              \
    auto run = s->state == 16 ? backward<T, 16> : backward<T, 0>;                                                    \
    run(*grad_y, *u, *delta, A, B, C, states, *grad_u, *grad_delta, grad_A, grad_B, grad_C, *s);                     \
  }

DEFINE_FUNCTIONS(float, f32)
DEFINE_FUNCTIONS(double, f64)
