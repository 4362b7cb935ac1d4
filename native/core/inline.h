// inline.h: the linkage that headers shared with ISA-specific code must use.
//
// An ISA's translation unit is compiled with wider instructions than the machine may have. An ordinary inline function
// in a header would be emitted there as a weak symbol, and the linker may keep that copy for everyone. Functions marked
// LAPIDARY_INLINE are always inlined and have internal linkage, so no such copy exists (scripts/check-isa-leaks
// checks).
#pragma once

#define LAPIDARY_INLINE static inline __attribute__((always_inline))
// The same for member functions, which cannot be static in that sense.
#define LAPIDARY_MEMBER_INLINE inline __attribute__((always_inline))
