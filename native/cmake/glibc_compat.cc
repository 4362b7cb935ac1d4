// What the linked-in libstdc++ would ask of a newer glibc than the addon should need. Defined here, hidden, the linker
// takes ours.
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

}  // extern "C"
