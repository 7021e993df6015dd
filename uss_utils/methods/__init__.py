"""One small room per method, each holding only what that method adds.

Every method module has the same parts: a frozen ``Config``, the table ``PRESETS``,
``build(cfg)``, ``train(cfg)`` which returns a
:class:`~uss_utils.segmenter.Segmenter`, and the functions that are the method's idea.
"""
