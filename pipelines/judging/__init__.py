"""Language models that judge texts for benchmarks, with a record of every judgement."""
