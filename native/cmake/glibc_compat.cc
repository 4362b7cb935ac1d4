// What the addon and the linked-in libstdc++ would ask of a newer glibc than the addon should need. Defined here, hidden,
// the linker takes ours.
#include <features.h>
#include <stdint.h>
#include <sys/random.h>

extern "C" {

// shared_ptr asks (glibc 2.32) whether the process has one thread only, to skip atomics: it never has.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// std::random_device reads glibc 2.36's generator.
__attribute__((visibility("hidden"))) uint32_t arc4random() {
  uint32_t value = 0;
  while (getrandom(&value, sizeof value, 0) != sizeof value) {
  }
  return value;
}

#if defined(__GLIBC__)
// pow got a new version in glibc 2.29, when it ceased to call the program's own error handler; the first version computes
// the same.
#if defined(__x86_64__)
__asm__(".symver lapidary_first_pow,pow@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver lapidary_first_pow,pow@GLIBC_2.17");
#endif
#if defined(__x86_64__) || defined(__aarch64__)
double lapidary_first_pow(double base, double exponent) noexcept;
__attribute__((visibility("hidden"))) double pow(double base, double exponent) noexcept {
  return lapidary_first_pow(base, exponent);
}
#endif
#endif

}  // extern "C"
