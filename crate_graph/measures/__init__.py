"""The quantities that white-box models optimise, and what tells how they do it: functions of tensors, nothing else.

    rate        coding rate, rate given subspaces and its variational form, sparse rate
                reduction, sparsity                                                       (tokens)
    matrices    coherence of subspaces, spectra of dictionaries and metrics               (weights)
    graphs      GLR and GTV of a picture, what is left of the data, entropy of edges      (iterates of uGLR and uGTV)

`crate_graph.analysis` takes them layer by layer.
"""
