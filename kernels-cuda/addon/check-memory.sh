#!/usr/bin/env bash
# Looks for memory errors and leaks in the addon: cycles of create, run and release under AddressSanitizer with
# LeakSanitizer and UndefinedBehaviorSanitizer, then under valgrind.
#
#   check-memory.sh [CYCLES [VALGRIND_CYCLES]]      10000 each, where nothing is said
#
# Needs g++ with its sanitizers, and valgrind. Node and ONNX Runtime keep some memory until the process ends, once; a
# leak is what is lost in every cycle, so a record of at least as many blocks as there were cycles, or any block that
# the addon's own code allocated.
set -euo pipefail
cycles=${1:-10000} valgrind_cycles=${2:-10000}
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../.." && pwd); build=$root/kernels-cuda/build
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

node "$here/build.mjs" && node "$here/build.mjs" --sanitize
(cd "$root" && node --import tsx --input-type=module -e "
  import { writeFileSync } from 'node:fs';
  import { makeModel } from './kernels-cuda/test-models.ts';
  import { onnxRuntimePath } from './kernels-cuda/node-paths.ts';
  const value = (name) => ({ name, type: 'float32', shape: ['n', 'm'] });
  writeFileSync('$work/model.onnx', makeModel([value('x')], [value('y')], [{ op: 'Add', inputs: ['x', 'x'], outputs: ['y'] }]));
  writeFileSync('$work/library', onnxRuntimePath());")
library=$(cat "$work/library")

# Prints the records of a log, separated by empty lines, that are leaks by the rule above.
leaks() { # LOG CYCLES
  sed -E 's/^==[0-9]+== ?//' "$1" | awk -v RS= -v cycles="$2" '
    match($0, /in [0-9,]+ (blocks|object)/) {
      count = substr($0, RSTART + 3, RLENGTH - 3); gsub(/[^0-9]/, "", count)
      own = $0 ~ /(operator new|malloc|calloc)[^\n]*\n[^\n]*ort_flash_node/
      if (count + 0 >= cycles || own) print $0 "\n"
    }'
}

status=0
LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=1:detect_odr_violation=1 \
  LSAN_OPTIONS=exitcode=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  node "$here/check-memory.mjs" "$build/ort_flash_node.asan.node" "$library" "$work/model.onnx" "$cycles" \
  >"$work/asan.log" 2>&1 || status=$?
grep ' cycles in ' "$work/asan.log" || true
leaks "$work/asan.log" "$cycles" >"$work/asan.leaks"
if [ "$status" -ne 0 ] || [ -s "$work/asan.leaks" ] || grep -qE 'ERROR: AddressSanitizer|runtime error:' "$work/asan.log"; then
  head -c 20000 "$work/asan.log"; echo "AddressSanitizer: failed"; exit 1
fi
echo "AddressSanitizer: clean"

# glibc's dynamic loader compares strings eight bytes at a time, past their ends.
cat >"$work/valgrind.supp" <<SUPPRESSIONS
{
  dynamic-loader
  Memcheck:Addr8
  ...
  fun:_dl_open
}
SUPPRESSIONS
valgrind --quiet --suppressions="$work/valgrind.supp" --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=none --smc-check=all-non-file \
  --undef-value-errors=no --num-callers=30 --log-file="$work/valgrind.log" \
  node "$here/check-memory.mjs" "$build/ort_flash_node.node" "$library" "$work/model.onnx" "$valgrind_cycles" || status=$?
leaks "$work/valgrind.log" "$valgrind_cycles" >"$work/valgrind.leaks"
if [ "$status" -ne 0 ] || [ -s "$work/valgrind.leaks" ] || grep -qE 'Invalid (read|write|free)|Mismatched free' "$work/valgrind.log"; then
  cat "$work/valgrind.leaks"; grep -A 20 -E 'Invalid (read|write|free)|Mismatched free' "$work/valgrind.log" | head -60
  echo "valgrind: failed"; exit 1
fi
echo "valgrind: clean"
