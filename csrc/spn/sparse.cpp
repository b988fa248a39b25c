// Any graph, node by node: Gibbs sweeps with weights and leaves given, sampling and the most probable
// completion. Reference: pyfast/reference/spn.py.
#include "spn/sparse.h"
#include "spn/choose.h"
#include "spn/values.h"

namespace pyfast::spn {
namespace {

// Calls each(mine, scratch, first row, rows) for all blocks of rows; each thread has what start() makes.
template <class F, class Start, class Each, class Finish>
void for_blocks(const Nodes<F>& nodes, int64_t rows, Start start, Each each, Finish finish) {
    const int64_t blocks = (rows + lanes<F> - 1) / lanes<F>;
#pragma omp parallel if (parallel(rows * nodes.g.nodes) && blocks > 1)
    {
        typename Nodes<F>::Scratch scratch(nodes);
        auto mine = start();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; ++i)
            each(mine, scratch, i * lanes<F>, std::min<int64_t>(lanes<F>, rows - i * lanes<F>));
#pragma omp critical
        finish(mine);
    }
}

void sweep(const std::vector<Strided>& graph, const Strided& X, const Strided& times, const Strided& weights,
           const Strided& leaves, uint64_t seed, uint64_t what, int64_t first_row, const Strided& weight_counts,
           const Strided& leaf_counts, const Strided& out) {
    const Graph g(graph);
    const int64_t rows = rows_of(g, X);
    const int64_t* m = data<const int64_t>(times, "times", {rows});
    int64_t *wc = data<int64_t>(weight_counts, "weight_counts", {g.weights}),
            *lc = data<int64_t>(leaf_counts, "leaf_counts", {g.parameters});
    double* to = data<double>(out, "out", {rows});
    for (int64_t n = 0; n < rows; ++n)
        if (m[n] < 0) throw py::value_error("times must not be negative");
    with_floats(weights, [&]<class F>(F) {
        const F* x = data<const F>(X, "X", {rows, g.variables});
        check_values(g, x, rows, true);
        const Nodes<F> nodes(g, data<const F>(weights, "weights", {g.weights}),
                             data<const F>(leaves, "leaves", {g.parameters}));
        int64_t widest = 1;
        for (int64_t i = 0; i < g.nodes; ++i) widest = std::max(widest, g.children(i));
        struct Mine {
            std::vector<int64_t> weights, leaves, some;
            std::vector<int32_t> stack;
            std::vector<F> share;
        };
        for_blocks<F>(
            nodes, rows,
            [&] {
                return Mine{std::vector<int64_t>(g.weights),
                            std::vector<int64_t>(g.parameters),
                            std::vector<int64_t>(g.nodes),
                            {},
                            std::vector<F>(widest)};
            },
            [&](Mine& mine, auto& scratch, int64_t first, int64_t count) {
                nodes.up(x + first * g.variables, count, scratch);
                for (int b = 0; b < count; ++b) {
                    const int64_t row = first + b;
                    to[row] = nodes.log_value(scratch, b);
                    if (m[row] == 0 || to[row] == -INFINITY) continue;
                    const auto reach = [&](int32_t node, int64_t n) {
                        if (mine.some[node] == 0) {
                            mine.stack.push_back(node);
                            std::push_heap(mine.stack.begin(), mine.stack.end());
                        }
                        mine.some[node] += n;
                    };
                    reach(int32_t(g.nodes - 1), m[row]);
                    while (!mine.stack.empty()) {  // parents before their children: the largest number first
                        std::pop_heap(mine.stack.begin(), mine.stack.end());
                        const int32_t node = mine.stack.back();
                        mine.stack.pop_back();
                        const int64_t here = mine.some[node];
                        mine.some[node] = 0;
                        if (g.kind[node] == leaf) {
                            const int32_t v = g.variable[node];
                            observe(g, v, mine.leaves.data() + g.leaf_first[g.leaf_of[node]], x[row * g.variables + v],
                                    here);
                        } else if (g.kind[node] == product) {
                            for (int64_t e = g.first[node]; e < g.first[node + 1]; ++e) reach(g.child[e], here);
                        } else {
                            nodes.shares(scratch, node, b, mine.share.data());
                            const auto send = [&](int64_t j, int64_t n) {
                                mine.weights[g.first_weight[node] + j] += n;
                                reach(g.child[g.first[node] + j], n);
                            };
                            share_out(mine.share.data(), g.children(node), here, seed, what,
                                      uint64_t(first_row + row) << 28 | uint64_t(node), send);
                        }
                    }
                }
            },
            [&](const Mine& mine) {
                for (int64_t i = 0; i < g.weights; ++i) wc[i] += mine.weights[i];
                for (int64_t i = 0; i < g.parameters; ++i) lc[i] += mine.leaves[i];
            });
    });
}

// What tables draw from.
template <class F>
struct Odds {
    std::vector<F> of_codes;      // probabilities
    std::vector<double> of_zero;  // of a node that is a table of two codes: the share of the first; else -1

    Odds(const Nodes<F>& nodes, bool maximise) : of_zero(nodes.g.nodes, -1) {
        const Graph& g = nodes.g;
        if (maximise) return;
        of_codes.assign(nodes.leaves, nodes.leaves + g.parameters);
        for (int64_t i = 0; i < g.nodes; ++i) {
            if (g.kind[i] != leaf || g.family[g.variable[i]] != table) continue;
            F *p = of_codes.data() + g.leaf_first[g.leaf_of[i]], *end = p + g.width[g.variable[i]];
            for (F* c = p; c < end; ++c) *c = F(exp(double(*c)));
            if (end - p == 2 && p[0] + p[1] > 0) of_zero[i] = double(p[0]) / (double(p[0]) + double(p[1]));
        }
    }
};

// A uniform number for each variable of a row, drawn many at a time as they are asked for.
class Uniforms {
  public:
    Uniforms(uint64_t seed, uint64_t what, int64_t variables)
        : seed_(seed), what_(what), drawn_((variables / size + 1) * size), of_(variables / size + 1) {}
    void begin(uint64_t name) { name_ = name, ++row_; }
    double operator[](int64_t v) {
        if (of_[v / size] != row_) draw(v / size);
        return drawn_[v];
    }

  private:
    static constexpr int N = 16, size = 2 * N;  // a block of random words is of two variables
    uint64_t seed_, what_, name_ = 0, row_ = 0;
    std::vector<double> drawn_;
    std::vector<uint64_t> of_;  // which row the numbers are of

    void draw(int64_t part) {
        uint64_t index[N];
        uint32_t w[4][N];
        for (int i = 0; i < N; ++i) index[i] = name_ | uint64_t(part * N + i);
        random::words<N>(seed_, what_, index, w);
        double* to = drawn_.data() + part * size;
        for (int i = 0; i < N; ++i) {
            to[2 * i] = random::uniform(w[0][i], w[1][i]);
            to[2 * i + 1] = random::uniform(w[2][i], w[3][i]);
        }
        of_[part] = row_;
    }
};

// Throws where a value is missing that nobody can tell.
template <class F>
void check_there(const Graph& g, const F* x, int64_t rows, bool maximise) {
    for (int64_t v = 0; v < g.variables; ++v) {
        if (g.family[v] != own || (!maximise && g.owns[v].quantile)) continue;
        for (int64_t n = 0; n < rows; ++n)
            if (x[n * g.variables + v] != x[n * g.variables + v])
                throw py::value_error("X[" + std::to_string(n) + ", " + std::to_string(v) +
                                      "] must be there, as its density has no " +
                                      (maximise ? "mode that is known" : "quantile") + ", got nan");
    }
}

// Fills what is missing in X: by a draw given what is there, or by the most probable values.
void complete(const std::vector<Strided>& graph, const Strided& X, const Strided& weights, const Strided& leaves,
              bool maximise, uint64_t seed, uint64_t what, uint64_t what_values, int64_t first_row) {
    const Graph g(graph);
    const int64_t rows = rows_of(g, X);
    with_floats(weights, [&]<class F>(F) {
        F* x = data<F>(X, "X", {rows, g.variables});
        check_values(g, static_cast<const F*>(x), rows, false);
        check_there(g, x, rows, maximise);
        const Nodes<F> nodes(g, data<const F>(weights, "weights", {g.weights}),
                             data<const F>(leaves, "leaves", {g.parameters}), maximise);
        int64_t widest = 1;
        for (int64_t i = 0; i < g.nodes; ++i) widest = std::max(widest, g.children(i));
        // Where nothing is known, the weights alone choose: their running sums are searched.
        std::vector<double> running(maximise ? 0 : g.weights);
        for (int64_t i = 0; i < g.nodes && !maximise; ++i) {
            if (g.kind[i] != sum) continue;
            double total = 0;
            for (int64_t j = 0; j < g.children(i); ++j)
                running[g.first_weight[i] + j] = total += double(nodes.weights[g.first_weight[i] + j]);
        }
        const Odds<F> odds(nodes, maximise);
        struct Mine {
            std::vector<int32_t> stack;
            std::vector<F> share;
            Uniforms uniforms;
        };
        for_blocks<F>(
            nodes, rows, [&] { return Mine{{}, std::vector<F>(widest), Uniforms(seed, what_values, g.variables)}; },
            [&](Mine& mine, auto& scratch, int64_t first, int64_t count) {
                F* from = x + first * g.variables;
                const bool known =
                    maximise || std::any_of(from, from + count * g.variables, [](F value) { return value == value; });
                if (known) nodes.up(from, count, scratch);
                for (int b = 0; b < count; ++b) {
                    F* row = from + b * g.variables;
                    const uint64_t name = uint64_t(first_row + first + b) << 28;
                    // not of the block, or a row's values would depend on its neighbours
                    const bool given = std::any_of(row, row + g.variables, [](F value) { return value == value; });
                    mine.stack.assign(1, int32_t(g.nodes - 1));
                    mine.uniforms.begin(name);
                    while (!mine.stack.empty()) {
                        const int32_t node = mine.stack.back();
                        mine.stack.pop_back();
                        const int32_t* child = g.child + g.first[node];
                        if (g.kind[node] == leaf) {
                            const int32_t v = g.variable[node];
                            if (row[v] == row[v]) continue;
                            if (odds.of_zero[node] >= 0) {
                                row[v] = mine.uniforms[v] < odds.of_zero[node] ? F(0) : F(1);
                                continue;
                            }
                            const int64_t at = g.leaf_first[g.leaf_of[node]];
                            if (maximise) {
                                row[v] = mode(g.family[v], nodes.leaves + at, g.width[v]);
                            } else if (g.family[v] == table) {
                                row[v] = F(choose(odds.of_codes.data() + at, g.width[v], mine.uniforms[v]));
                            } else {
                                Stream stream(seed, what_values, name | uint64_t(v));
                                row[v] = F(g.family[v] == own ? value_draw(g.owns[v], nodes.leaves + at, stream)
                                                              : value_draw(g.family[v], nodes.leaves + at, stream));
                            }
                        } else if (g.kind[node] == product) {
                            mine.stack.insert(mine.stack.end(), child, child + g.children(node));
                        } else {
                            const int64_t n = g.children(node);
                            int64_t j;
                            if (maximise) {
                                nodes.shares(scratch, node, b, mine.share.data());
                                j = std::max_element(mine.share.begin(), mine.share.begin() + n) - mine.share.begin();
                            } else {
                                const random::Words w = random::bits(seed, what, name | uint64_t(node));
                                const double u = random::uniform(w[0], w[1]);
                                if (given) {
                                    nodes.shares(scratch, node, b, mine.share.data());
                                    j = choose(mine.share.data(), n, u);
                                } else {
                                    const double* sums = running.data() + g.first_weight[node];
                                    j = std::upper_bound(sums, sums + n, u * sums[n - 1]) - sums;
                                    j = std::min(j, n - 1);
                                }
                            }
                            mine.stack.push_back(child[j]);
                        }
                    }
                }
            },
            [](const Mine&) {});
    });
}

}  // namespace

void bind_sparse(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("sparse_sweep", &sweep, nogil);
    m.def("complete", &complete, nogil);
}

}  // namespace pyfast::spn
