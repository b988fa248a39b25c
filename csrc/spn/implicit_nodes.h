// What a tree that is never built keeps of its nodes, and what it reads of a row: see implicit.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "spn/chain_scaled.h"

namespace pyfast::spn {

struct Product;

// A value that is not its column's usual one, and where in a scope it stands.
struct Rare {
    int32_t at, variable;
};

// A row as the tree reads it. Most values are usual ones: of these, nodes know the likelihood beforehand.
struct Sample {
    std::vector<int64_t> code;         // of a table's column; its width where the value is missing
    std::vector<double> x, untouched;  // values; their likelihoods in leaves that have seen nothing
    std::vector<Rare> rare;            // in the root's scope
};

struct Child {
    int64_t number, count;  // of all children, those before it; samples that pass it
    std::unique_ptr<Product> product;
};

struct Sum {
    uint64_t id = 0;
    int32_t first = 0, size = 0;  // of its variables, within the scope that it is a part of
    int64_t choices = 0;          // sums of an induced tree from here on
    Scaled plain;                 // likelihood of usual values in leaves that have seen nothing
    int64_t total = 0;
    std::vector<Child> used;  // by their numbers
};

struct Product {
    std::vector<int32_t> scope;  // variables, part after part
    std::vector<int32_t> where;  // in the scope, by where a variable stands in that of the sum above; empty if there
    std::vector<Sum> sums;       // parts of more than one variable, which come first
    std::vector<int64_t> at;     // of a part of one variable: its statistics
    std::vector<int64_t> seen;
    std::vector<double> chance;  // of a table's codes in turn, then 1 for none
    Scaled usual;                // likelihood of usual values in these parts
};

// What is rare of a sample within a product's scope.
class Inside {
  public:
    const Rare *begin, *end;
    int32_t shift = 0;  // to subtract from where they stand

    Inside(const Product& p, const Rare* first, const Rare* last, int32_t from) : begin(first), end(last) {
        if (p.where.empty()) {
            shift = from;
            return;
        }
        const int64_t n = last - first;
        if (n > few) many_.resize(n);
        Rare* const to = n > few ? many_.data() : few_;
        for (int64_t i = 0; i < n; ++i) to[i] = {p.where[first[i].at - from], first[i].variable};
        std::sort(to, to + n, [](const Rare& a, const Rare& b) { return a.at < b.at; });
        begin = to, end = to + n;
    }
    Inside(const Inside&) = delete;

    // The next ones that stand before `limit`.
    const Rare* until(int32_t limit) {
        const Rare* r = begin;
        while (r < end && r->at < limit) ++r;
        return r;
    }

  private:
    static constexpr int few = 32;
    Rare few_[few];
    std::vector<Rare> many_;
};

}  // namespace pyfast::spn
