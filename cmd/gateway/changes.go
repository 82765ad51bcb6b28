package main

import (
	"context"
	"time"

	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/server"
)

// feed gives what the database has of changes the server's types.
type feed struct{ *postgres.Gateway }

func (f feed) ArrivedReadings(ctx context.Context, gln meter.GLN, after server.FeedPlace, horizon uint64, limit int) ([]server.ArrivedReadings, server.FeedPlace, bool, error) {
	found, next, done, err := f.Gateway.ArrivedReadings(ctx, gln, postgres.FeedPlace(after), horizon, limit)
	out := make([]server.ArrivedReadings, len(found))
	for i, r := range found {
		out[i] = server.ArrivedReadings{Place: server.FeedPlace(r.Place), EAN: r.EAN, At: r.At, Changed: make([]server.ChangedDays, len(r.Changed))}
		for j, c := range r.Changed {
			out[i].Changed[j] = server.ChangedDays(c)
		}
	}
	return out, server.FeedPlace(next), done, err
}

func (f feed) ArrivedFiles(ctx context.Context, gln meter.GLN, after server.FeedPlace, horizon uint64, limit int) ([]server.ArrivedFile, server.FeedPlace, bool, error) {
	found, next, done, err := f.Gateway.ArrivedFiles(ctx, gln, postgres.FeedPlace(after), horizon, limit)
	out := make([]server.ArrivedFile, len(found))
	for i, v := range found {
		out[i] = server.ArrivedFile{Place: server.FeedPlace(v.Place), EAN: v.EAN, Version: v.Version, Sealed: v.Sealed, Previous: v.Previous}
	}
	return out, server.FeedPlace(next), done, err
}

func (f feed) ExpiredConsents(ctx context.Context, gln meter.GLN, after server.ExpiredConsent, until time.Time, limit int) ([]server.ExpiredConsent, error) {
	found, err := f.Gateway.ExpiredConsents(ctx, gln, postgres.Expired(after), until, limit)
	out := make([]server.ExpiredConsent, len(found))
	for i, e := range found {
		out[i] = server.ExpiredConsent(e)
	}
	return out, err
}
