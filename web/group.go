package web

import (
	"errors"
	"log/slog"
	"net/http"

	"golang.org/x/sync/errgroup"
)

// group runs parts of a page at the same time. A panic in one of them fails the
// page, as one in a handler does: errgroup would end the process with it.
type group struct {
	errs  errgroup.Group
	log   *slog.Logger
	route string
}

func (p *Portal) group(r *http.Request) *group {
	return &group{log: p.log, route: visitOf(r).route.path}
}

// Go runs f beside the others.
func (g *group) Go(f func() error) {
	g.errs.Go(func() (err error) {
		defer func() {
			if recover() != nil {
				g.log.Error("panic", "route", g.route, "stack", stack())
				err = errors.New("panic")
			}
		}()
		return f()
	})
}

// SetLimit bounds how many run at once.
func (g *group) SetLimit(n int) { g.errs.SetLimit(n) }

// Wait waits for all, and returns the first error.
func (g *group) Wait() error { return g.errs.Wait() }
