package web

// healthRoutes are those of templates/health.html.
func (p *Portal) healthRoutes() []route { return nil }
