// amx_stores.cc: memory that only tile instructions read. check-amx-objects.sh looks whether this file's object code
// still writes it.
//
// With <amxtileintrin.h> gcc 12.2 writes 33 of the 64 bytes of configure_on_stack(): no tile has rows.
#include <cstring>

#include "kernels/cpu/simd/tiles_amx.h"

using namespace lapidary;

// Sixteen stores of 64 bytes, a tile load of what they wrote, and nothing else that could want them.
extern "C" void fill_and_load(const unsigned char* from, unsigned char* out) {
  alignas(64) unsigned char buffer[simd::kTileBytes];
  for (int i = 0; i < simd::kTileBytes; ++i) buffer[i] = static_cast<unsigned char>(from[i] ^ 0x5a);
  simd::Tiles tiles(simd::kFullTiles);
  tiles.load<3>(buffer, simd::kTileRowBytes);
  tiles.store<3>(out, simd::kTileRowBytes);
}

// A configuration that exists in memory only because ldtilecfg reads it.
extern "C" void configure_on_stack(int rows, unsigned char* out) {
  simd::TileConfig config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int tile = 0; tile < simd::kTileCount; ++tile) {
    config.row_bytes[tile] = simd::kTileRowBytes;
    config.rows[tile] = static_cast<uint8_t>(rows);
  }
  simd::Tiles tiles(config);
  tiles.zero<0>();
  tiles.store<0>(out, simd::kTileRowBytes);
}
