// handle_table.cc: handles of JavaScript as numbers: stale, foreign, exhausted.
#include "bridge/handle_table.h"

#include <stdio.h>

#include <memory>

namespace lapidary {
namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  printf("FAILED: %s\n", what);
}

constexpr uint32_t kCapacity = 3000;  // several chunks, the last one not full
using Table = HandleTable<std::shared_ptr<int>, HandleType::tensor, kCapacity>;

bool is_code(Table& table, double handle, Code code) {
  Status status;
  return table.find(handle, "it", status) == nullptr && status.code() == code;
}

void test_exhaustion() {
  Table table;
  std::vector<double> handles(kCapacity);
  for (uint32_t i = 0; i < kCapacity; ++i)
    expect(table.add(std::make_shared<int>(int(i)), "it", handles[i]).ok(), "add");
  double extra = 0;
  for (int i = 0; i < 3; ++i) {
    expect(table.add(std::make_shared<int>(-1), "it", extra).code() == Code::kOutOfMemory, "one more is an error");
    expect(extra == 0, "no handle where there is an error");
  }
  Status status;
  for (uint32_t i = 0; i < kCapacity; ++i) {
    auto* value = table.find(handles[i], "it", status);
    expect(value && **value == int(i), "every value is found");
  }
  std::shared_ptr<int> removed;
  expect(table.remove(handles[1500], removed) && *removed == 1500, "remove");
  expect(!table.remove(handles[1500], removed), "remove again");
  expect(table.add(std::make_shared<int>(7), "it", extra).ok(), "a freed slot is used again");
  expect(extra != handles[1500] && is_code(table, handles[1500], Code::kDisposed), "the old handle is stale");
  expect(table.add(std::make_shared<int>(8), "it", handles[1500]).code() == Code::kOutOfMemory, "full again");
}

void test_handles() {
  Table table, other;
  double handle = 0;
  expect(table.add(std::make_shared<int>(1), "it", handle).ok(), "add");
  for (double bad : {0.0, -1.0, 0.5, 1e300, handle + 1, handle + double(1 << 24), double(1ull << 51)})
    expect(is_code(table, bad, Code::kForeignHandle), "a number that is no handle");
  expect(is_code(other, handle, Code::kForeignHandle), "another table's handle");
  const auto value = std::make_shared<int>(2);
  double second = 0;
  expect(table.add(value, "it", second).ok(), "add");
  int seen = 0;
  table.for_each([&](std::shared_ptr<int>&) { ++seen; });
  expect(seen == 2, "for_each visits the live ones");
  table.remove_if([](std::shared_ptr<int>& held) { return *held == 2; });
  expect(value.use_count() == 1, "a removed value is let go of");
  expect(is_code(table, second, Code::kDisposed), "and its handle is stale");
  expect(!is_code(table, handle, Code::kDisposed), "others stay");
}

}  // namespace
}  // namespace lapidary

int main() {
  lapidary::test_exhaustion();
  lapidary::test_handles();
  if (lapidary::failures == 0) printf("handle_table: ok\n");
  return lapidary::failures == 0 ? 0 : 1;
}
