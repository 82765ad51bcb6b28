package main

import (
	"context"
	"time"

	"kluis/auditlog/oversight"
	"kluis/internal/postgres"
	"kluis/meter"
)

// overseer is the database as package server wants it for oversight.
type overseer struct {
	db   *postgres.Gateway
	zone *time.Location // of the market's days
}

// Overview implements server.Overseer.
func (o overseer) Overview(ctx context.Context, days meter.DayRange) (oversight.Overview, error) {
	return o.db.Overview(ctx, o.zone, days)
}
