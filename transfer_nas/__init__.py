"""Neural-architecture search on many ranks in which no candidate trains from scratch."""
