"""What is spread out: a Ray session, fold actors, the aggregator actor. Needs ray; torch stays with the workers."""
