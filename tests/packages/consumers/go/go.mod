module consumer

go 1.26.0

require wfe-persistence/gen/go v0.0.0

replace wfe-persistence/gen/go => ./stubs
