#!/bin/sh
# check-amx-objects.sh OBJECT...: reads the object code of AMX kernels and of their emulated twins (binutils' objdump).
#
#   amx            tiles are configured from a constant, released by the function that configured them, and live within one
#                  function: every tile that a product reads was zeroed or loaded there, every tile that it adds to is stored there
#   amx_emulated   has no AMX instruction at all
#   amx_stores.cc  compiled here as the kernels are: the stores before a tile load, and those of a configuration, are in the code
#
# Which is which shows in the exported table, lapidary_<stem>_amx or lapidary_<stem>_amx_emulated.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "check-amx-objects: $*" >&2; exit 1; }
amx='ldtilecfg|sttilecfg|tilerelease|tilezero|tileload|tilestore|tdp'

for object in "$@"; do
  objdump -dr --no-show-raw-insn "$object" > "$work/code"
  if nm "$object" | grep -q 'lapidary_.*_amx_emulated$'; then
    grep -qE "$amx" "$work/code" && fail "$object: an emulated kernel has AMX instructions"
    echo "$object: no AMX instruction"
    continue
  fi
  nm "$object" | grep -q 'lapidary_.*_amx$' || fail "$object: exports no AMX kernel table"
  awk -v object="$object" '
    function finish(  tile) {
      if ((configured > 0) != (released > 0)) bad("configured " configured " times, released " released " times")
      configurations += configured
      for (tile in used) if (!(tile in filled)) bad(tile " is multiplied but not filled")
      for (tile in summed) if (!(tile in stored)) bad(tile " is summed up but not stored")
    }
    function bad(what) { print object ": " name ": " what; failed = 1 }
    function number(text) { match(text, /tmm[0-7]/); return substr(text, RSTART, RLENGTH) }
    /^[0-9a-f]+ </ { finish(); name = $2; configured = 0; released = 0; delete used; delete filled; delete summed; delete stored }
    /ldtilecfg/    { ++configured; if ($0 !~ /\(%rip\)/) bad("a configuration that is no constant") }
    /tilerelease/  { ++released }
    /tilezero|tileload/ { ++loads; filled[number($0)] }
    /tilestore/    { ++stores; stored[number($0)] }
    /tdp/ {
      ++products
      n = split($NF, operand, ",")
      used[number(operand[1])]; used[number(operand[2])]; used[number(operand[3])]; summed[number(operand[3])]
    }
    END {
      finish()
      if (configurations == 0 || products == 0) bad("no tiles")
      if (failed) exit 1
      print object ": " configurations " ldtilecfg, " loads " tilezero and tileloadd, " products " products, " stores " tilestored"
    }' "$work/code" || fail "$object: see above"
done

${CXX:-g++} -std=c++20 -O3 -fno-exceptions -mavx512f -mavx512bw -mavx512vl -mprefer-vector-width=512 -I"$here/../../native" \
  -c "$here/amx_stores.cc" -o "$work/stores.o"
objdump -d --no-show-raw-insn "$work/stores.o" > "$work/code"
# Bytes that vector instructions store before the first tile instruction of a function.
stored() {
  awk -v name="<$1>:" '
    $2 == name { inside = 1 }
    inside && /ldtilecfg|tileload/ { print bytes + 0; exit }
    inside && /mov[a-z0-9]* +%[xyz]mm[0-9]+,.*\(/ { bytes += /%zmm/ ? 64 : /%ymm/ ? 32 : 16 }' "$work/code"
}
[ "$(stored fill_and_load)" -ge 1024 ] || fail "$(stored fill_and_load) of 1024 bytes are stored before a tile load"
[ "$(stored configure_on_stack)" -ge 64 ] || fail "$(stored configure_on_stack) of 64 bytes of a configuration are stored"
echo "amx_stores.cc: stores before tile loads and configurations are kept"
