"""The product's own NTK engine: a sum over sites, the places where a parameter meets data.

sites           what a site is: almost always a product, a convolution, a multiplication or an addition
rules           one rule for each kind of site: what the Jacobian there is made of
analysis        finds the sites of a traced model, and evaluates it with them perturbed; sites in a scan's body are
                sites at every step, a parameter that goes through other operations first (weight normalization, a
                BatchNorm's scale times its inverse deviation) gets its Jacobian through their derivative
uses, linear    by what a value is used, and so which derivatives are in memory anyway, which slices are a whole
                (an LSTM's gates), and which derivatives are the same for all examples
biases          a bias that is added to a product is one more row of the product's parameter
heads           a last layer of more traced outputs than inputs, as a narrower one that has the same kernel; its factor
                of W Wᵀ is made once for both sides, since rounding can make another one
outputs         the axes of the output in a kernel: traced, diagonal, kept
site_jacobians  the Jacobian at one site, written out or in factors
features        what a kernel needs to know of each example, each group of sites in its cheapest form
contract        from features of examples to kernels: the explicit, Gram, embedding and shared forms
engine          all of it together: a kernel of two batches, or its parts (features, contraction) for artefacts.
                Deep models and scans are evaluated for the examples of both sides together, and of their few
                examples all pairs are contracted, because copies of each side's features take longer; where
                derivatives of all outputs outgrow a CPU's caches, a kernel is a sum over some outputs at a time
projected       the other use of all this: a random projection of each example's Jacobian (`ntk_features`), by
                `projection`, which `drawn` and `buffers` serve; `prefixes` pulls Jacobians back to the variables
hoisting        what does not depend on the outputs at hand, computed once for all of them
costs           what each site costs, by count

lowering        what XLA does badly and the engine does for it, by platform; an artefact's programs are traced once for
                all platforms, and each compiles its own operations (`platforms`)
window          where the taps of a convolution or of a maximum meet data; strides phase by phase, without zeros between
                the data
convolution     channels last (XLA reorders others only outside loops); sums over taps where XLA's own are slow,
                those of three axes as sums of two's; derivatives of few positions without reordering the kernel
patches         the data under each output; of few positions by one gather, which compiles faster than a slice for each
                tap, positions last in memory
depthwise       derivatives by the kernels of depthwise convolutions
pooling         maxima of windows whose derivatives are sums over taps, not scatters
"""
