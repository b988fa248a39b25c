// A graph with its counts, or with weights and leaves drawn: what a chain over induced trees asks of them.
#pragma once

#include "spn/chain_predictive.h"
#include "spn/chain_scaled.h"

namespace pyfast::spn {

// What the hot loops read of a node, in one cache line.
struct alignas(64) Node {
    int64_t first = 0;   // inner: of its children; leaf: of its statistics and of its parameters
    int64_t at = 0;      // sum: its first weight; leaf: where its prior begins
    double mass = 0;     // collapsed: prior mass of each child of a sum, of all values of a table; else a sum's weights
    int64_t total = 0;   // samples that pass a sum; that show a table a value
    int32_t count = 0;   // inner: children; leaf: its variable
    int32_t scope = 0;   // leaves of an induced tree below
    int32_t height = 0;  // sums on the longest path down
    int32_t few[3] = {};  // of `total`: how many pass the first children, or show the first values
    int32_t below = 0;    // sum with parts: the first child of its first child
    uint16_t parts = 0;   // sum: children of each of its children, one after the other from `below`; 0 if not so
    uint8_t kind = leaf;  //
    uint8_t family = 0;   // of a leaf
};
static_assert(sizeof(Node) == 64);

// Where all grandchildren of a sum stand side by side, as in trees, walks need not look at its children.
inline void find_parts(const Graph& g, int64_t i, Node& n) {
    const int64_t begin = g.first[i], end = g.first[i + 1], parts = g.children(g.child[begin]);
    if (parts == 0 || parts > UINT16_MAX) return;
    const int32_t below = g.child[g.first[g.child[begin]]];
    for (int64_t e = begin; e < end; ++e) {
        const int32_t c = g.child[e];
        if (g.kind[c] != product || g.children(c) != parts) return;
        for (int64_t j = 0; j < parts; ++j)
            if (g.child[g.first[c] + j] != below + (e - begin) * parts + j) return;
    }
    n.below = below;
    n.parts = uint16_t(parts);
}

// The nodes of a graph, with what follows from their children. Proves what bounds every walk: no induced tree has more
// sums than the graph, or more leaves than there are variables, and all trees below a node have as many leaves.
//
// most: sums of an induced tree below a node; waiting: nodes that wait their turn in a walk below it.
struct Most {
    int32_t sums = 0, waiting = 0;
};

inline std::vector<Node> make_nodes(const Graph& g, Most& root) {
    std::vector<Node> nodes(g.nodes);
    std::vector<Most> most(g.nodes);
    int64_t sums = 0;
    for (int64_t i = 0; i < g.nodes; ++i) sums += g.kind[i] == sum;
    for (int64_t i = 0; i < g.nodes; ++i) {
        Node& n = nodes[i];
        n.kind = g.kind[i];
        n.first = g.first[i];
        n.count = int32_t(g.children(i));
        int64_t scope = 0, below = 0;
        for (int64_t e = g.first[i]; e < g.first[i + 1]; ++e) {
            const Node& c = nodes[g.child[e]];
            n.height = std::max(n.height, c.height + (n.kind == sum));
            demand(n.kind == product || e == g.first[i] || c.scope == scope, "be complete");
            const Most& under = most[g.child[e]];
            most[i].waiting =
                std::max(most[i].waiting, under.waiting + int32_t(n.kind == product ? g.first[i + 1] - e - 1 : 0));
            scope = n.kind == product ? scope + c.scope : c.scope;
            below = n.kind == product ? below + under.sums : std::max(below, int64_t(under.sums) + 1);
            demand(scope <= g.variables && below <= sums, "be decomposable");
        }
        n.scope = int32_t(scope);
        most[i].sums = int32_t(below);
        if (n.kind == leaf) {
            n.scope = 1;
            n.count = g.variable[i];
            n.family = g.family[n.count];
            n.first = g.leaf_first[g.leaf_of[i]];
        } else if (n.kind == sum) {
            n.at = g.first_weight[i];
            find_parts(g, i, n);
        }
    }
    root = most.back();
    return nodes;
}

// The sums of an induced tree in depth-first preorder, and its leaves. What is below one variable of a node's scope is
// one slot: all trees below a node have as many, so that a part of a tree is replaced where it stands.
struct Choice {
    int32_t node, child;  // of the children of the node
    int32_t slot;         // the first of what is below
};

struct Tree {
    std::vector<Choice> sums;
    std::vector<Scaled> factor;  // of a sum: what a proposal's weight has to be corrected by, if anything
    std::vector<int32_t> leaf;   // of a slot: the node that settles it; -1 where an earlier slot's node does
    std::vector<Scaled> value;   // of a slot: the likelihood there
    int32_t size = 0;            // sums

    Tree(int64_t max_sums, int64_t slots) : sums(max_sums), factor(max_sums), leaf(slots, -1), value(slots) {}

    // The sums in [i, end(i, n)) are below sum i, and below n slots from its first.
    int32_t end(int32_t i, int32_t slots) const {
        const int32_t last = sums[i].slot + slots;
        int32_t j = i + 1;
        while (j < size && sums[j].slot < last) ++j;
        return j;
    }
};

struct Model {
    const Graph& g;
    Most most;  // of the root
    std::vector<Node> node;
    int32_t root;
    const double *alpha = nullptr, *prior = nullptr;
    int64_t *weight_counts = nullptr, *leaf_counts = nullptr;
    bool collapsed = true;
    std::vector<double> weights;  // unless collapsed
    std::vector<double> leaves;   // unless collapsed: a table's probabilities; else as they are given
    std::vector<double> logs;     // unless collapsed: as they are given
    std::vector<double> x;        // the sample at hand

    explicit Model(const Graph& graph) : g(graph), node(make_nodes(graph, most)), root(int32_t(graph.nodes - 1)) {
        x.resize(g.variables);
        stack.resize(most.waiting);
    }

    int64_t max_sums() const { return std::max<int64_t>(1, most.sums); }

    // ---- the sample's likelihood below a leaf, a sum's weights ----

    double weight(const Node& s, int64_t k) const {
        return collapsed ? s.mass + double(k < 3 ? s.few[k] : weight_counts[s.at + k]) : weights[s.at + k];
    }
    double total(const Node& s) const { return collapsed ? s.mass * s.count + double(s.total) : s.mass; }

    Scaled likelihood(const Node& n) const {
        const double value = x[n.count];
        if (value != value) return {};
        if (n.family != table) [[unlikely]]
            return density(n, value);
        const int64_t c = int64_t(value);
        if (collapsed)
            return Scaled((prior[n.at + c] + double(c < 3 ? n.few[c] : leaf_counts[n.first + c])) /
                          (n.mass + double(n.total)));
        const double p = leaves[n.first + c];
        return p > 1e-290 ? Scaled(p) : Scaled::from_log(logs[n.first + c]);
    }

    [[gnu::noinline]] Scaled density(const Node& n, double value) const {
        if (!collapsed) return Scaled::from_log(log_density(g, n.count, &logs[n.first], value));
        if (n.family == own)
            return Scaled::from_log(g.owns[n.count].log_predictive(prior + n.at, leaf_counts + n.first, value));
        const Moments seen(leaf_counts + n.first, g.quantum[n.count]);
        return Scaled::from_log(log_predictive(n.family, prior + n.at, seen, value));
    }

    // ---- counts ----

    void count_sum(const Choice& c, int64_t times) {
        Node& s = node[c.node];
        s.total += times;
        weight_counts[s.at + c.child] += times;
        if (c.child < 3) s.few[c.child] += int32_t(times);
    }
    void count_leaf(int32_t i, int64_t times) {
        Node& n = node[i];
        const double value = x[n.count];
        if (value == value) {
            n.total += times;
            if (n.family == table && value < 3) n.few[int64_t(value)] += int32_t(times);
        }
        observe(g, n.count, leaf_counts + n.first, value, times);
    }
    void count(const Tree& t, int64_t times) {
        for (int32_t i = 0; i < t.size; ++i) count_sum(t.sums[i], times);
        for (int32_t v = 0; v < node[root].scope; ++v) count_leaf(t.leaf[v], times);
    }

    // The totals that nodes keep, from the counts.
    void sum_counts() {
        for (Node& n : node) {
            n.total = 0;
            const int64_t size = n.kind == sum ? n.count : n.kind == leaf && n.family == table ? g.width[n.count] : 0;
            const int64_t* from = n.kind == sum ? weight_counts + n.at : leaf_counts + n.first;
            for (int64_t k = 0; k < size; ++k) n.total += from[k];
            for (int64_t k = 0; k < std::min<int64_t>(size, 3); ++k) n.few[k] = int32_t(from[k]);
        }
    }

    // ---- walks ----

    // Calls on_sum(choice), which returns its child, and on_leaf(node, slot), down the tree that on_sum decides.
    // on_sum may settle all below by returning a negative child.
    template <class Sum, class Leaf>
    void walk(int32_t top, int32_t slot, Sum on_sum, Leaf on_leaf) {
        walk(top, -1, slot, on_sum, on_leaf);
    }

    // The same below the sum `top`, whose child is known, unless it is -1.
    template <class Sum, class Leaf>
    void walk(int32_t top, int32_t known, int32_t slot, Sum on_sum, Leaf on_leaf) {
        int32_t* const bottom = stack.data();
        int32_t* pending = bottom;
        for (int32_t v = top;; v = *--pending) {
            while (true) {
                const Node& n = node[v];
                if (n.kind == leaf) {
                    on_leaf(v, slot++);
                    break;
                }
                const int32_t* below = g.child + n.first;
                if (n.kind == sum) {
                    int32_t k = known;
                    known = -1;
                    if (k < 0) k = on_sum(v, slot);
                    if (k < 0) {
                        slot += n.scope;
                        break;
                    }
                    v = n.parts ? n.below + k * n.parts : below[k];
                    for (int32_t j = n.parts - 1; j > 0; --j) {
                        __builtin_prefetch(&node[v + j]);
                        *pending++ = v + j;
                    }
                    continue;
                }
                for (int32_t k = n.count - 1; k > 0; --k) *pending++ = below[k];
                v = below[0];
            }
            if (pending == bottom) return;
        }
    }

    // Reads a row of choices into a tree.
    void read(const int32_t* row, Tree& t) {
        t.size = 0;
        walk(
            root, 0,
            [&](int32_t v, int32_t slot) {
                const int32_t k = row[t.size];
                t.sums[t.size++] = {v, k, slot};
                return k;
            },
            [&](int32_t v, int32_t slot) { t.leaf[slot] = v; });
    }

    // Throws unless a row is an induced tree, or all -1: false then. A graph without sums has one tree: {0}.
    bool check(const int32_t* row, int64_t n, int64_t width) {
        const auto refuse = [&](int64_t i, const char* rule) {
            throw py::index_error("choices[" + std::to_string(n) + ", " + std::to_string(i) + "] must " + rule +
                                  ", got " + std::to_string(row[i]));
        };
        int64_t used = 0;
        const bool out = row[0] == -1;
        if (!out && most.sums == 0 && row[used++] != 0) refuse(0, "be 0 or -1 in a graph without sums");
        if (!out)
            walk(
                root, 0,
                [&](int32_t v, int32_t) {
                    const int32_t k = row[used];
                    if (k < 0 || k >= node[v].count) refuse(used, "name a child of its sum");
                    const Node& c = node[g.child[node[v].first + k]];
                    ++used;
                    return c.height ? k : -1;
                },
                [](int32_t, int32_t) {});
        for (; used < width; ++used)
            if (row[used] != -1) refuse(used, "be -1 beyond the tree's end");
        return !out;
    }

    void write(const Tree& t, int32_t* row) const {
        for (int32_t i = 0; i < t.size; ++i) row[i] = t.sums[i].child;
        std::fill(row + t.size, row + max_sums(), -1);
        if (t.size == 0) row[0] = 0;
    }

    std::vector<int32_t> stack;  // of walks
};

}  // namespace pyfast::spn
