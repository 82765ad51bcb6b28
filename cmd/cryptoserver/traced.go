package main

import (
	"context"

	"go.opentelemetry.io/otel/attribute"

	"kluis/cryptoserver/token"
	"kluis/internal/tracing"
)

// tracedOpener makes a span of what the HSM opens for a traced request.
type tracedOpener struct{ token.Opener }

func (o tracedOpener) Open(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	ctx, end := batchSpan(ctx, "hsm open", len(keys), len(items))
	err := o.Opener.Open(ctx, keys, items)
	end(err)
	return err
}

// tracedSealer does so of what it seals.
type tracedSealer struct{ token.Sealer }

func (s tracedSealer) Seal(ctx context.Context, keys []token.WrappedKey, items []token.Item) error {
	ctx, end := batchSpan(ctx, "hsm seal", len(keys), len(items))
	err := s.Sealer.Seal(ctx, keys, items)
	end(err)
	return err
}

func batchSpan(ctx context.Context, name string, keys, blocks int) (context.Context, func(error)) {
	return tracing.Span(ctx, name, attribute.Int("kluis.data_keys", keys), attribute.Int("kluis.blocks", blocks))
}
