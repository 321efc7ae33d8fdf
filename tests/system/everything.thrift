/*
 * What the Thrift tests call: one call of each kind, and one struct with every type that Thrift has.
 *
 * `Wider` has a method that a server of `Everything` does not know.
 */
namespace py arca_everything

enum Colour { RED = 1, GREEN = 2, BLUE = -3 }

struct Point {
  1: required i32 x
  2: required double y
}

struct All {
  1: bool yes
  2: bool no
  3: i8 tiny
  4: i16 small
  5: i32 number
  6: i64 large
  7: double real
  8: string text
  9: binary blob
  10: Colour colour
  11: Point point
  12: optional string absent
  13: list<bool> flags
  14: list<i8> octets
  15: list<i64> numbers
  16: list<double> reals
  17: list<string> texts
  18: set<i32> members
  19: map<string, i32> counts
  20: map<i32, list<map<string, set<i16>>>> deep
  21: list<Point> points
  22: map<string, Point> places
  23: list<list<list<i32>>> cube
  24: map<bool, bool> truths
  25: list<string> nothing
  26: map<i64, string> no_pairs
  27: set<double> no_members
  28: list<Colour> colours
  29: list<All> more
  // Farther from the last than the short form of the compact protocol reaches.
  3000: string far
}

exception Refused {
  1: i32 number
  2: string why
}

exception Busy {
  1: list<string> reasons
  2: i64 again_at
}

service Everything {
  string echo(1: string text)
  i64 add(1: i32 a, 2: i64 b)
  All give_back(1: All all)
  void nothing()
  oneway void note(1: string text)
  string refuse(1: i32 number) throws (1: Refused refused, 2: Busy busy)
  string fail(1: string text)
  string slow(1: double seconds)
}

service Wider extends Everything {
  string unheard_of(1: map<string, list<string>> all)
}
