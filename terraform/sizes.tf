# The one place that says how large each environment is. docs/deploy.md has what it costs.
locals {
  sizes = {
    staging = {
      zones           = 2
      nat_gateways    = 1
      node_type       = "m5.large"
      nodes           = { min = 2, desired = 2, max = 4 }
      node_disk_gib   = 50
      database_class  = "db.t3.medium"
      database_gib    = 50
      database_spread = false
      kafka           = null
      protected       = false
      log_days        = 30
      secret_days     = 7
    }
    production = {
      zones           = 3
      nat_gateways    = 3
      node_type       = "m5.xlarge"
      nodes           = { min = 3, desired = 3, max = 9 }
      node_disk_gib   = 100
      database_class  = "db.r5.large"
      database_gib    = 200
      database_spread = true
      kafka           = { brokers = 3, type = "kafka.m5.large", disk_gib = 500 }
      protected       = true
      log_days        = 365
      secret_days     = 30
    }
  }

  size      = local.sizes[var.environment]
  name      = "verdict-${var.environment}"
  cluster   = var.environment == "production" ? var.cluster_name : "${var.cluster_name}-${var.environment}"
  zones     = slice(data.aws_availability_zones.available.names, 0, local.size.zones)
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
}
