package backend

import (
	"context"

	"kluis/custodian"
	"kluis/internal/postgres"
)

// FactHorizon implements custodian.Store.
func (s CustodianStore) FactHorizon(ctx context.Context) (uint64, error) {
	n, err := s.DB.FactHorizon(ctx)
	return n, stored(err)
}

// NewFacts implements custodian.Store.
func (s CustodianStore) NewFacts(ctx context.Context, kind custodian.FactKind, after custodian.FactPlace, limit int) ([]custodian.Fact, error) {
	facts, err := s.DB.NewFacts(ctx, postgres.FactKind(kind), postgres.FactPlace(after), limit)
	return ofStore(facts), stored(err)
}

// AllFacts implements custodian.Store.
func (s CustodianStore) AllFacts(ctx context.Context, kind custodian.FactKind, after custodian.FactPlace, limit int) ([]custodian.Fact, error) {
	facts, err := s.DB.AllFacts(ctx, postgres.FactKind(kind), postgres.FactPlace(after), limit)
	return ofStore(facts), stored(err)
}

func ofStore(facts []postgres.Fact) []custodian.Fact {
	out := make([]custodian.Fact, len(facts))
	for i, f := range facts {
		out[i] = custodian.Fact{Place: custodian.FactPlace(f.Place), Sealed: f.Sealed, Previous: f.Previous}
	}
	return out
}

// NewestFacts implements custodian.Store.
func (s CustodianStore) NewestFacts(ctx context.Context, kind custodian.FactKind, subjects []int64) ([]custodian.Fact, error) {
	facts, err := s.DB.NewestFacts(ctx, postgres.FactKind(kind), subjects)
	return ofStore(facts), stored(err)
}

// FactMark implements custodian.Store.
func (s CustodianStore) FactMark(ctx context.Context) (uint64, error) {
	n, err := s.DB.FactMark(ctx)
	return n, stored(err)
}

// SetFactMark implements custodian.Store.
func (s CustodianStore) SetFactMark(ctx context.Context, arrived uint64) error {
	return stored(s.DB.SetFactMark(ctx, arrived))
}
