package main

import (
	"context"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/meter"
)

type supplyCorrectCmd struct {
	target
	EAN      eanFlag `help:"Metering point (EAN-18)." required:"" name:"ean" placeholder:"EAN"`
	Supplier glnFlag `help:"Who supplied on the days (GLN)." placeholder:"GLN" xor:"who" required:""`
	Nobody   bool    `help:"Nobody supplied on the days." xor:"who" required:""`
	From     dayFlag `help:"First day." required:"" placeholder:"DAY"`
	To       dayFlag `help:"First day after; open when left out." placeholder:"DAY"`
}

// Help says more than fits a line.
func (supplyCorrectCmd) Help() string {
	return `Says who supplied on days, whatever was recorded before; all other days keep whom they have. It counts from the next request on. What was read before was lawful by what was known then: kluis explain shows both.

Example, a switch that was on the 1st and not on the 15th:
  kluis supply correct --state .demo --ean 871687200000000010 --supplier 8712000000028 --from 2026-11-01 --to 2026-11-15`
}

func (c *supplyCorrectCmd) Run(ctx context.Context, s streams) error {
	if c.To.set && c.To.Day <= c.From.Day {
		return usage("--to must be later than --from: it is the first day after")
	}
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		if !c.Nobody {
			if _, err := r.Supplier(ctx, c.Supplier.GLN); err != nil {
				return err
			}
		}
		step := authz.CorrectSupply{Supplier: c.Supplier.GLN, Days: meter.DayRange{From: c.From.Day, To: c.To.until()}}
		f, err := r.ChangeLegalFile(ctx, c.EAN.EAN, registered([]authz.Step{step}))
		if err != nil {
			return err
		}
		return printLegalFile(s.out, f, c.JSON)
	})
}

type supplyCorrectMoveCmd struct {
	target
	EAN eanFlag `help:"Metering point (EAN-18)." required:"" name:"ean" placeholder:"EAN"`
	Was dayFlag `help:"Day on which the move is recorded." required:"" placeholder:"DAY"`
	Is  dayFlag `help:"Day on which it was." required:"" placeholder:"DAY"`
}

// Help says more than fits a line.
func (supplyCorrectMoveCmd) Help() string {
	return `Moves one boundary of occupancies: the day on which one customer moved out, another in, or both. Consents stay with their occupancy; one that was given on a day that, as it turns out, was another customer's counts no more.

Example:
  kluis supply correct-move --state .demo --ean 871687200000000010 --was 2026-03-01 --is 2026-02-15`
}

func (c *supplyCorrectMoveCmd) Run(ctx context.Context, s streams) error {
	return withRegistrar(ctx, c.target, func(r *backend.Registrar) error {
		f, err := r.ChangeLegalFile(ctx, c.EAN.EAN, registered([]authz.Step{authz.CorrectMove{Was: c.Was.Day, Is: c.Is.Day}}))
		if err != nil {
			return err
		}
		return printLegalFile(s.out, f, c.JSON)
	})
}
