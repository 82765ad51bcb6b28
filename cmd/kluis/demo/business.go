package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"kluis/meter"
)

// unasked is the home, among those with one supplier all year, whose customer gave
// no consent and is asked for one.
const unasked = 7

// business lets the suppliers do, once, what they do every day, so that there is
// somebody to be seen in the access log of the first homes: they read what they may,
// ask for a little that they may not, and one asks a customer for consent.
func (d *demo) business(ctx context.Context, r *readyFile, today meter.Day) error {
	if d.progress.Business {
		return nil
	}
	d.say("the suppliers read some of their customers' meters")
	month := today.Month().First()
	for i := range d.plan.suppliers {
		c, err := newAPIClient(r, r.Suppliers[i])
		if err != nil {
			return err
		}
		for n, pt := range d.plan.points[:4] {
			if pt.supply[0].supplier != i {
				continue
			}
			ean := pt.ean.String()
			if _, err := c.readings(ctx, ean, "BILLING", month.AddMonths(-2).String(), month.String()); err != nil {
				return err
			}
			for day := today - 3; day < today; day++ {
				if _, err := c.readings(ctx, ean, "ENERGY_MANAGEMENT", day.String(), (day + 1).String()); err != nil {
					return err
				}
			}
			if n == 0 { // before the customer had this supplier
				if _, err := c.readings(ctx, ean, "BILLING", month.AddMonths(-15).String(), month.AddMonths(-14).String()); err != nil {
					return err
				}
			}
		}
	}
	if err := d.askForConsent(ctx, r, today); err != nil {
		return err
	}
	d.progress.Business = true
	return d.save(d.progress)
}

// askForConsent has the supplier ask. Asked again after a break it is the same
// request.
func (d *demo) askForConsent(ctx context.Context, r *readyFile, today meter.Day) error {
	pt := d.plan.points[unasked]
	c, err := newAPIClient(r, r.Suppliers[pt.supply[0].supplier])
	if err != nil {
		return err
	}
	token, err := c.token(ctx)
	if err != nil {
		return err
	}
	setUp, err := meter.ParseDay(d.progress.SetUp)
	if err != nil {
		return fmt.Errorf("%s: %w", d.progressFile(), err)
	}
	body, err := json.Marshal(map[string]any{
		"ean": pt.ean.String(), "purpose": "ENERGY_MANAGEMENT", "classes": []string{"intervals"}, "granularity": "PT1H",
		"from": setUp.String(), "validUntil": setUp.AddMonths(12).Start(d.profile.Location()).UTC().Format(time.RFC3339), "evidence": "contract-2026-08",
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.GatewayURL+"/v1/consents", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", "demo-request-1")
	_, err = c.do(req)
	return err
}
